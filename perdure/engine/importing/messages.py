"""A message of a conversation as an event: its type, its cause and the few words about it."""

from __future__ import annotations

from typing import Any, Final

from perdure.engine.changes import Change
from perdure.engine.importing.builder import RunBuilder
from perdure.errors import ImportFailed

__all__ = ["add_message", "add_messages", "checked_messages", "message_change"]

_PATH: Final = ("messages",)
_TYPES: Final = {
    "system": "system_message_added",
    "developer": "system_message_added",
    "user": "user_message_added",
    "human": "user_message_added",
    "assistant": "assistant_message_added",
    "tool": "tool_result_received",
    "function": "tool_result_received",
}
_ANSWERS: Final = frozenset({"assistant_message_added", "tool_called"})


def checked_messages(value: Any, what: str) -> list[dict[str, Any]]:
    """The value if it is a list of messages with roles. Raises ImportFailed."""
    if not isinstance(value, list):
        raise ImportFailed(f"{what} is not a list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise ImportFailed(f"message {index} of {what} is not an object")
        if not isinstance(message.get("role"), str):
            raise ImportFailed(f"message {index} of {what} has no role")
    return value


def add_messages(run: RunBuilder, messages: list[dict[str, Any]]) -> None:
    """Add every message as one event."""
    for message in messages:
        add_message(run, message)


def add_message(run: RunBuilder, message: dict[str, Any]) -> None:
    """Add a message as one event: a call of tools that stands inside an assistant's message is that message's event."""
    calls, results = _calls(message), _results(message)
    type_ = _TYPES.get(message["role"].lower(), "message_added")
    if calls:
        type_ = "tool_called"
    elif results:
        type_ = "tool_result_received"
    cause = run.last_id if type_ in _ANSWERS else run.caller(results) if type_ == "tool_result_received" else None
    event = run.add(type_, (message_change(message),), data=_tools(calls, message), cause=cause)
    run.message_ids.append(event)
    if calls:
        run.called(event, [call_id for call_id, _ in calls if call_id])


def message_change(message: dict[str, Any]) -> Change:
    """The change that appends the message, as it is, to the conversation."""
    return Change("append", _PATH, message)


def _calls(message: dict[str, Any]) -> list[tuple[str, str]]:
    """Id and tool of every call in a message: OpenAI's `tool_calls`, the older `function_call`, and blocks of type `tool_use`."""
    found = [(_text(call.get("id")), _tool(call)) for call in _maps(message.get("tool_calls"))]
    if isinstance(message.get("function_call"), dict):
        found.append(("", _text(message["function_call"].get("name"))))
    return found + [(_text(block.get("id")), _text(block.get("name"))) for block in _blocks(message, "tool_use")]


def _results(message: dict[str, Any]) -> list[str]:
    """Ids of the calls that a message answers."""
    found = [message.get("tool_call_id")]
    if isinstance(message.get("tool_call_ids"), list):
        found += message["tool_call_ids"]
    found += [block.get("tool_use_id") for block in _blocks(message, "tool_result")]
    return [call_id for call_id in found if isinstance(call_id, str) and call_id]


def _tool(call: dict[str, Any]) -> str:
    function = call.get("function")
    return _text(function.get("name") if isinstance(function, dict) else call.get("name"))


def _tools(calls: list[tuple[str, str]], message: dict[str, Any]) -> dict[str, Any] | None:
    names = [name for _, name in calls if name]
    if not names and message["role"] in ("tool", "function") and _text(message.get("name")):
        names = [message["name"]]
    if not names:
        return None
    return {"tool": names[0]} if len(names) == 1 else {"tools": names}


def _blocks(message: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [block for block in _maps(message.get("content")) if block.get("type") == kind]


def _maps(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
