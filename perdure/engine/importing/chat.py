"""Lists of messages as the chat interfaces of model providers have them: `[{"role": …}, …]` or `{"messages": […], …}`."""

from __future__ import annotations

from typing import Any, Final

from perdure.engine.importing.builder import RunBuilder
from perdure.engine.importing.contract import Conversation, Place
from perdure.engine.importing.messages import add_messages, checked_messages
from perdure.engine.importing.naming import agent_id, run_id
from perdure.errors import ImportFailed

__all__ = ["convert", "is_message", "recognises"]

_ID_MEMBERS: Final = ("conversation_id", "session_id", "thread_id", "run_id", "id")


def is_message(value: Any) -> bool:
    """Whether a value is one message rather than a conversation."""
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def recognises(record: Any) -> bool:
    """Whether a record looks like a conversation."""
    if isinstance(record, list):
        return bool(record) and is_message(record[0])
    return isinstance(record, dict) and isinstance(record.get("messages"), list)


def convert(record: Any, place: Place) -> Conversation:
    """The conversation of a record; its other members become members of the state. Raises ImportFailed."""
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, dict) or "messages" not in record:
        raise ImportFailed("is not a chat: neither a list of messages nor an object with 'messages'")
    messages = checked_messages(record["messages"], "'messages'")
    agent = agent_id(place.stem, _own_id(record) or ("" if place.alone else f"run-{place.number}"))
    run = RunBuilder("chat", agent, run_id(agent))
    run.start({name: value for name, value in record.items() if name != "messages"})
    add_messages(run, messages)
    return run.build({}, place)


def _own_id(record: dict[str, Any]) -> str:
    for name in _ID_MEMBERS:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""
