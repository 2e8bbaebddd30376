"""tau-bench: runs of tool-calling customer service agents, `{task_id, trial, reward, info, traj}`, and its few-shot transcripts."""

from __future__ import annotations

import re
from typing import Any, Final

from perdure.engine.changes import Change
from perdure.engine.importing.builder import RunBuilder
from perdure.engine.importing.contract import Conversation, Place
from perdure.engine.importing.messages import add_messages, checked_messages
from perdure.engine.importing.naming import agent_id, shortened
from perdure.errors import ImportFailed

__all__ = ["convert", "recognises"]

_TURN: Final = re.compile(r"^(user|assistant|tool|system): ", re.MULTILINE)
_RUN_LENGTH_MAX: Final = 64


def recognises(record: Any) -> bool:
    """Whether a record looks like a run of tau-bench."""
    return isinstance(record, dict) and (isinstance(record.get("traj"), list) or isinstance(record.get("messages_display"), str))


def convert(record: Any, place: Place) -> Conversation:
    """The run of a record: the state is the record with its messages under `messages`. Raises ImportFailed."""
    if not isinstance(record, dict):
        raise ImportFailed("is not a tau-bench run: not an object")
    if "messages" in record:
        raise ImportFailed("is not a tau-bench run: it has 'messages' of its own")
    if "traj" in record:
        return _run(record, checked_messages(record["traj"], "'traj'"), place)
    if isinstance(record.get("messages_display"), str):
        return _few_shot(record, place)
    raise ImportFailed("is not a tau-bench run: it has neither 'traj' nor 'messages_display'")


def _run(record: dict[str, Any], messages: list[dict[str, Any]], place: Place) -> Conversation:
    name = _name(record) or f"run-{place.number}"
    run = RunBuilder("tau-bench", agent_id(place.stem, *name.split("/")), shortened(name, _RUN_LENGTH_MAX))
    facts = {key: value for key, value in record.items() if key not in ("traj", "reward", "info")}
    info = record.get("info")
    outcome = dict(info) if isinstance(info, dict) else {}
    if isinstance(info, dict):
        # The task is known when the run begins, what it was worth only at its end.
        facts["info"] = {"task": outcome.pop("task")} if "task" in outcome else {}
    elif "info" in record:
        facts["info"] = info
    run.start(facts)
    add_messages(run, messages)
    changes = [Change("set", ("reward",), record["reward"])] if "reward" in record else []
    changes += [Change("set", ("info", key), value) for key, value in outcome.items()]
    if changes:
        run.add("reward_given", tuple(changes), cause=run.message_ids[-1] if run.message_ids else None)
    return run.build({key: str(record[f"{key}_id" if key == "task" else key]) for key in _labels(record)}, place)


def _few_shot(record: dict[str, Any], place: Place) -> Conversation:
    messages = _transcript(record["messages_display"])
    name = f"run-{place.number}"
    run = RunBuilder("tau-bench", agent_id(place.stem, name), name)
    run.start({key: value for key, value in record.items() if key != "messages_display"})
    add_messages(run, messages)
    return run.build({}, place)


def _transcript(text: str) -> list[dict[str, Any]]:
    """Messages of a transcript `role: content`, one a line or more. The source prints a message without content (a call) as `None`."""
    turns = list(_TURN.finditer(text))
    if not turns or turns[0].start() != 0:
        raise ImportFailed("is not a tau-bench transcript: it does not begin with a role")
    ends = [turn.start() - 1 for turn in turns[1:]] + [len(text)]
    contents = [text[turn.end() : end] for turn, end in zip(turns, ends, strict=True)]
    return [{"role": turn[1], "content": None if content == "None" else content} for turn, content in zip(turns, contents, strict=True)]


def _labels(record: dict[str, Any]) -> list[str]:
    return [key for key, member in (("task", "task_id"), ("trial", "trial")) if isinstance(record.get(member), str | int)]


def _name(record: dict[str, Any]) -> str:
    """`task-12/trial-0`, as far as the record says."""
    return "/".join(f"{key}-{record['task_id' if key == 'task' else key]}" for key in _labels(record))
