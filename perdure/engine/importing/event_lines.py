"""Events as JSON lines: our own format, that `perdure export` writes and `perdure import` reads.

One event a line, an object: `agent` and `type`, and what else there is to say: `tenant`, `id`, `changes`, `data`, `metadata`, `source`,
`actor`, `causation_id`, `correlation_id`, `trace_id`, `project`, `module`, `schema_version`, `replayable`. A change is
`{"op": "set", "path": "/a/0", "value": …}`. Of a recorded event the line says its place as well (`version`, `time`, `epoch`, `partition`,
`offset`, `chain`); a reader checks `version` for gaps and takes the rest as a note.

Bytes are written `{"$bytes": "base64"}`; an object that looks like that gets one more `$`.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from typing import Any, Final
from uuid import UUID

from perdure.engine.changes import Change, format_path, parse_path
from perdure.engine.checks import check_event
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.importing.naming import event_id
from perdure.engine.importing.text import decode_text, parse
from perdure.engine.log.records import rfc3339
from perdure.engine.values import check_value
from perdure.errors import InvalidEvent, InvalidInput
from perdure.limits import AGENT_ID_LENGTH_MAX

__all__ = ["agent_of", "decode_line", "decode_record", "encode_line"]

_WRAPPING_DEPTH: Final = 8
_MARK: Final = re.compile(r"\$+bytes")
_TEXTS: Final = ("type", "source", "actor", "correlation_id", "trace_id", "project", "module")
_PLACE: Final = frozenset({"version", "time", "epoch", "partition", "offset", "chain"})
_KNOWN: Final = _PLACE | {*_TEXTS, "tenant", "agent", "id", "causation_id", "changes", "data", "metadata", "schema_version", "replayable"}
_OPERATIONS: Final = ("set", "delete", "append", "insert", "merge")


def encode_line(event: RecordedEvent) -> bytes:
    """One line, with its line feed, of a recorded event."""
    fields: dict[str, Any] = {
        "tenant": event.tenant,
        "agent": event.agent,
        "version": event.version,
        "type": event.type,
        "id": str(event.id),
        "time": rfc3339(event.time),
        "changes": [_encode_change(change) for change in event.changes],
        "data": _marked(event.data),
        "metadata": _marked(event.metadata),
        "source": event.source,
        "actor": event.actor,
        "causation_id": None if event.causation_id is None else str(event.causation_id),
        "correlation_id": event.correlation_id,
        "trace_id": event.trace_id,
        "project": event.project,
        "module": event.module,
        "schema_version": event.schema_version,
        "replayable": event.replayable,
        "epoch": event.epoch,
        "partition": event.partition,
        "offset": event.offset,
        "chain": event.chain.hex(),
    }
    known = {name: value for name, value in fields.items() if not _is_default(name, value)}
    return json.dumps(known, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes, number: int = 1) -> tuple[str | None, str, Event]:
    """Tenant (None: not said), agent and event of a line. number: of the line in its file. Raises InvalidInput."""
    return decode_record(parse(decode_text(line, number), number), number)


def decode_record(record: Any, number: int = 1) -> tuple[str | None, str, Event]:
    """The same of a line that is parsed already. An event without an id gets one from its content and its line's number."""
    if not isinstance(record, dict):
        raise InvalidEvent("an event line is not an object")
    # Before anything walks into it; the allowance is for what the line itself wraps around a value.
    check_value(record, "the line", depth=-_WRAPPING_DEPTH)
    unknown = sorted(record.keys() - _KNOWN)
    if unknown:
        raise InvalidEvent(f"an event line has no member {unknown[0]!r:.80}", hint="put facts of your own into data or metadata")
    agent, tenant = record.get("agent"), record.get("tenant")
    if not isinstance(agent, str) or not agent:
        raise InvalidEvent("an event line names no agent")
    if len(agent) > AGENT_ID_LENGTH_MAX or not agent.isprintable():
        raise InvalidEvent(f"agent is {agent!r:.80}, not a printable name of at most {AGENT_ID_LENGTH_MAX} characters")
    if tenant is not None and not isinstance(tenant, str):
        raise InvalidEvent("tenant is not a text")
    given = record.get("id")
    identifier = event_id("events", agent, number, record) if given is None else _uuid("id", given)
    event = _event(record, identifier)
    check_event(event, own_types=True)
    return tenant, agent, event


def _event(record: dict[str, Any], identifier: UUID) -> Event:
    if not isinstance(record.get("type"), str):
        raise InvalidEvent("an event line has no type")
    for name in _TEXTS:
        if record.get(name) is not None and not isinstance(record[name], str):
            raise InvalidEvent(f"{name} is not a text")
    metadata, changes = ((empty if record.get(name) is None else record[name]) for name, empty in (("metadata", {}), ("changes", [])))
    if not isinstance(changes, list):
        raise InvalidEvent("changes are not a list")
    cause = record.get("causation_id")
    return Event(
        record["type"],
        tuple(_decode_change(change) for change in changes),
        data=_unmarked(record.get("data")),
        metadata=_unmarked(metadata),
        id=identifier,
        source=record.get("source") or "",
        actor=record.get("actor") or "",
        causation_id=None if cause is None else _uuid("causation_id", cause),
        correlation_id=record.get("correlation_id"),
        trace_id=record.get("trace_id"),
        project=record.get("project"),
        module=record.get("module"),
        schema_version=record.get("schema_version", 1),
        replayable=record.get("replayable", True),
    )


def _encode_change(change: Change) -> dict[str, Any]:
    known: dict[str, Any] = {"op": change.op, "path": format_path(change.path)}
    return known if change.op == "delete" else {**known, "value": _marked(change.value)}


def _decode_change(change: Any) -> Change:
    if not isinstance(change, dict) or not isinstance(change.get("path"), str) or change.get("op") not in _OPERATIONS:
        raise InvalidEvent("a change is not an object with op and path", hint='like {"op": "set", "path": "/a", "value": 1}')
    if change.keys() != ({"op", "path"} if change["op"] == "delete" else {"op", "path", "value"}):
        raise InvalidEvent(
            f"a change of kind {change['op']} has the members {', '.join(sorted(change))}", hint="a delete has no value, all others have"
        )
    return Change(change["op"], parse_path(change["path"]), _unmarked(change.get("value")))


def _uuid(name: str, text: Any) -> UUID:
    try:
        return UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise InvalidEvent(f"{name} is not a UUID: {text!r:.60}") from None


def _is_default(name: str, value: Any) -> bool:
    if name == "schema_version":
        return bool(value == 1)
    if name == "replayable":
        return value is True
    return value is None or (name in ("source", "actor", "changes", "metadata") and not value)


def _marked(value: Any) -> Any:
    """The value with its bytes written as JSON can hold them."""
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    if isinstance(value, dict):
        marked = {key: _marked(item) for key, item in value.items()}
        return {"$" + key: item for key, item in marked.items()} if _looks_marked(value) else marked
    return value


def _unmarked(value: Any) -> Any:
    """The opposite of `_marked`. Raises InvalidEvent."""
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not _looks_marked(value):
        return {key: _unmarked(item) for key, item in value.items()}
    ((key, item),) = value.items()
    if key != "$bytes":
        return {key[1:]: _unmarked(item)}
    try:
        return b64decode(item, validate=True)
    except (ValueError, TypeError):
        raise InvalidEvent("$bytes is not base64") from None


def _looks_marked(value: dict[str, Any]) -> bool:
    return len(value) == 1 and _MARK.fullmatch(next(iter(value))) is not None


def agent_of(line: bytes) -> tuple[str | None, str] | None:
    """Tenant and agent that a broken line begins with, as far as they can be made out."""
    found = re.search(rb'"agent"\s*:\s*("(?:[^"\\]|\\.)*")', line)
    tenant = re.search(rb'"tenant"\s*:\s*("(?:[^"\\]|\\.)*")', line)
    try:
        name = parse(decode_text(found[1])) if found else None
        owner = parse(decode_text(tenant[1])) if tenant else None
    except InvalidInput:
        return None
    return (owner, name) if isinstance(name, str) else None
