"""Who&When: runs of several agents, `{question, history, mistake_agent, mistake_step, …}`, with the step that went wrong."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

from perdure.engine.changes import Change
from perdure.engine.importing.builder import RunBuilder
from perdure.engine.importing.contract import Conversation, Place
from perdure.engine.importing.messages import checked_messages, message_change
from perdure.engine.importing.naming import agent_id, shortened
from perdure.errors import ImportFailed

__all__ = ["convert", "recognises"]

_OUTCOME: Final = frozenset({"mistake_agent", "mistake_step", "mistake_reason", "mistake_type", "is_correct", "is_corrected", "labels"})
_ROLE: Final = re.compile(r"(?P<actor>.*?) \((?:(?P<thought>thought)|-> (?P<to>.+)|(?P<end>termination condition))\)", re.DOTALL)
_NAME_LENGTH_MAX: Final = 100


def recognises(record: Any) -> bool:
    """Whether a record looks like a run of Who&When."""
    if not isinstance(record, dict) or not isinstance(record.get("history"), list):
        return False
    return "mistake_step" in record or "mistake_agent" in record or "question" in record


def convert(record: Any, place: Place) -> Conversation:
    """The run of a record: the state is the record with its history under `messages`. Raises ImportFailed."""
    if not isinstance(record, dict) or "history" not in record:
        raise ImportFailed("is not a Who&When run: it has no 'history'")
    if "messages" in record:
        raise ImportFailed("is not a Who&When run: it has 'messages' of its own")
    messages = checked_messages(record["history"], "'history'")
    number = "" if place.alone else f"run-{place.number}"
    agent = agent_id(place.folder, place.stem, number)
    run = RunBuilder("who-and-when", agent, shortened(agent, _NAME_LENGTH_MAX))
    run.start({name: value for name, value in record.items() if name != "history" and name not in _OUTCOME})
    asked: dict[str, UUID] = {}
    for message in messages:
        _add(run, message, asked)
    _annotate(run, record)
    mistaken = record.get("mistake_agent")
    return run.build({"mistake_agent": shortened(mistaken, _NAME_LENGTH_MAX)} if isinstance(mistaken, str) else {}, place)


def _add(run: RunBuilder, message: dict[str, Any], asked: dict[str, UUID]) -> None:
    """Add one message. Roles read `WebSurfer`, `Orchestrator (thought)`, `Orchestrator (-> WebSurfer)`; or a name stands beside the role."""
    role = message["role"]
    marked = _ROLE.fullmatch(role)
    name = message.get("name")
    speaker = marked["actor"] if marked else name if isinstance(name, str) and name else role
    type_, cause = _meaning(role, marked, asked.get(speaker), run.last_id)
    data = {"to": marked["to"]} if marked and marked["to"] else None
    event = run.add(type_, (message_change(message),), data=data, cause=cause, actor=shortened(speaker, _NAME_LENGTH_MAX))
    run.message_ids.append(event)
    if marked and marked["to"]:
        asked[marked["to"]] = event


def _meaning(role: str, marked: re.Match[str] | None, request: UUID | None, previous: UUID | None) -> tuple[str, UUID | None]:
    """The type of a message's event, and its cause: an agent that was asked answers the request, others what stands before them."""
    if marked and marked["thought"]:
        return "thought_added", previous
    if marked and marked["end"]:
        return "run_ended", previous
    if marked:
        return "instruction_given", previous
    if role in ("human", "user"):
        return "user_message_added", None
    return "assistant_message_added", request or previous


def _annotate(run: RunBuilder, record: dict[str, Any]) -> None:
    """Add the verdict on the run, caused by the message that it blames."""
    changes = tuple(Change("set", (name,), value) for name, value in record.items() if name in _OUTCOME)
    if not changes:
        return
    step = str(record.get("mistake_step", ""))
    blamed = int(step) if step.isascii() and step.isdigit() and len(step) < 10 else len(run.message_ids)
    cause = run.message_ids[blamed] if blamed < len(run.message_ids) else None
    kind = "mistake_annotated" if any(change.path[0].startswith("mistake_") for change in changes) else "verdict_given"
    run.add(kind, changes, cause=cause)
