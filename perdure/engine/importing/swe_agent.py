"""SWE-agent: coding runs, `{environment, trajectory: [{action, observation, …}], history: [message…], info}`."""

from __future__ import annotations

from typing import Any, Final

from perdure.engine.changes import Change
from perdure.engine.importing.builder import RunBuilder
from perdure.engine.importing.contract import Conversation, Place
from perdure.engine.importing.messages import add_message, checked_messages, message_change
from perdure.engine.importing.naming import agent_id, run_id, shortened
from perdure.errors import ImportFailed

__all__ = ["convert", "recognises"]

_OBSERVED: Final = frozenset({"observation", "state", "execution_time"})
"""What is known of a step only after its action."""
_LOOK_AHEAD_STEPS: Final = 16
"""How many steps may have left no message (a call that was repeated) before the next that has one."""


def recognises(record: Any) -> bool:
    """Whether a record looks like a run of SWE-agent."""
    if not isinstance(record, dict) or "question" in record or "mistake_step" in record:
        return False
    return isinstance(record.get("trajectory"), list) or isinstance(record.get("history"), list)


def convert(record: Any, place: Place) -> Conversation:
    """The run of a record: the state is the record with its history under `messages`. Raises ImportFailed."""
    if not isinstance(record, dict) or not ("trajectory" in record or "history" in record):
        raise ImportFailed("is not a SWE-agent run: it has neither 'trajectory' nor 'history'")
    if "messages" in record:
        raise ImportFailed("is not a SWE-agent run: it has 'messages' of its own")
    history = checked_messages(record.get("history", []), "'history'")
    steps = _checked_steps(record.get("trajectory", []))
    agent = agent_id(place.stem, "" if place.alone else f"run-{place.number}")
    run = RunBuilder("swe-agent", agent, run_id(agent))
    lists = (("messages",) if "history" in record else ()) + (("trajectory",) if "trajectory" in record else ())
    run.start({name: value for name, value in record.items() if name not in ("history", "trajectory", "info")}, lists)
    _Walk(run, steps).walk(history)
    if "info" in record:
        run.add("run_ended", (Change("set", ("info",), record["info"]),), cause=run.last_id)
    environment = record.get("environment")
    return run.build({"environment": shortened(environment, 100)} if isinstance(environment, str) else {}, place)


def _checked_steps(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ImportFailed("'trajectory' is not a list of steps")
    for index, step in enumerate(value):
        if not isinstance(step, dict):
            raise ImportFailed(f"step {index} of 'trajectory' is not an object")
    return value


class _Walk:
    """Walks along the history and the trajectory together: a step and the messages about it are the same two events."""

    def __init__(self, run: RunBuilder, steps: list[dict[str, Any]]) -> None:
        self._run = run
        self._steps = steps
        self._next = 0

    def walk(self, history: list[dict[str, Any]]) -> None:
        """Add every message and every step, each list in its own order."""
        position = 0
        while position < len(history):
            found = self._step_of(history[position])
            if found is None:
                add_message(self._run, history[position])
                position += 1
                continue
            self._bare_steps(found)
            reply = history[position + 1] if position + 1 < len(history) and history[position + 1]["role"] != "assistant" else None
            self._step(history[position], reply)
            position += 1 if reply is None else 2
        self._bare_steps(len(self._steps))

    def _step_of(self, message: dict[str, Any]) -> int | None:
        """The step that an assistant's message took."""
        if message["role"] != "assistant" or message.get("is_demo"):
            return None
        for index in range(self._next, min(len(self._steps), self._next + _LOOK_AHEAD_STEPS)):
            step = self._steps[index]
            if "action" in message and message["action"] == step.get("action") and message.get("thought") == step.get("thought"):
                return index
            if message.get("content") and message["content"] == step.get("response"):
                return index
        return None

    def _bare_steps(self, until: int) -> None:
        """Steps that the history does not speak of."""
        while self._next < until:
            self._step(None, None)

    def _step(self, message: dict[str, Any] | None, reply: dict[str, Any] | None) -> None:
        """Add the next step: the action with its message, then the observation with the reply that carried it."""
        index, step = self._next, self._steps[self._next]
        self._next += 1
        action = {name: value for name, value in step.items() if name not in _OBSERVED}
        changes = (Change("append", ("trajectory",), action), *([message_change(message)] if message is not None else []))
        event = self._run.add("action_taken", changes, cause=self._run.last_id)
        self._run.called(event, [])
        seen = [Change("set", ("trajectory", str(index), name), value) for name, value in step.items() if name in _OBSERVED]
        seen += [message_change(reply)] if reply is not None else []
        if seen:
            self._run.add("observation_received", tuple(seen), cause=event)
