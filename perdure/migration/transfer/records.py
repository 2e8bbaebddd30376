"""What both ends write down of a transfer.

At the source a **forwarding record** an agent, which is also the notice that the agent goes (`perdure.engine.moves`). At the target an
**arrival**. Neither decides anything: what holds is what the agents' rows say (`perdure.engine.log.marks`), because those change in the same
step as the events do.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from perdure.engine.log.arrival_rows import ARRIVALS
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName
from perdure.engine.moves import OUT, document_name
from perdure.errors import Conflict, IntegrityError
from perdure.identifiers import uuid7

__all__ = ["Arrival", "Phase", "TransferRecord", "arrival", "identity", "keep", "keep_arrival", "record_of", "records"]

IDENTITY: Final = ("transfers", "identity")

Phase = Literal["copying", "moved", "aborted", "erased", "returned"]
"""copying: begun, not committed as far as the source knows. moved: the target serves it. aborted: the source does. erased: moved, and the source's
key of it destroyed. returned: it has come back since."""


class TransferRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A forwarding record. address, open: see `perdure.engine.moves.Notice`. to: the target log's identity. events, bytes: that were copied, by
    all attempts of this coordinator. downtime_us: from before the source was fenced until the target had committed; 0 where that is not known,
    because another process went on with it. version, chain, digest (hex): of the state that was compared at both ends."""

    id: str
    tenant: str
    agent: str
    address: str
    to: str
    open: bool = True
    phase: Phase = "copying"
    source: str = ""
    started_us: int = 0
    ended_us: int = 0
    events: int = 0
    bytes: int = 0
    rounds: int = 0
    downtime_us: int = 0
    version: int = 0
    epoch: int = 0
    chain: str = ""
    digest: str = ""
    problem: str = ""

    @property
    def name(self) -> AgentName:
        """The agent's."""
        return AgentName(self.tenant, self.agent)


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """The target's side. before: the owner of the row that it was staged over, None where the row was made for it. aborted: it was broken off;
    nobody stages under this id any more. revision: of the document, as it was read."""

    id: str
    source: str
    before: str | None = None
    started_us: int = 0
    committed_us: int = 0
    aborted: bool = False
    revision: int = 0


async def record_of(store: LogStore, name: AgentName) -> TransferRecord | None:
    """The agent's forwarding record."""
    document = await store.get_document(OUT, document_name(name))
    return None if document is None else _record(document.value)


async def records(store: LogStore) -> list[TransferRecord]:
    """All forwarding records, in order of tenant and agent."""
    return sorted((_record(each.value) for each in await store.list_documents(OUT)), key=lambda each: each.name)


async def keep(store: LogStore, record: TransferRecord, *, expected: int | None = None) -> bool:
    """Write a forwarding record; expected: as of `put_document`."""
    value = msgspec.msgpack.encode(record)
    return await store.put_document(OUT, document_name(record.name), value, expected=expected) is not None


async def arrival(store: LogStore, name: AgentName) -> Arrival | None:
    """What the target has written down of the agent."""
    document = await store.get_document(ARRIVALS, document_name(name))
    if document is None:
        return None
    return msgspec.structs.replace(msgspec.msgpack.decode(document.value, type=Arrival), revision=document.revision)


async def keep_arrival(store: LogStore, name: AgentName, value: Arrival) -> Arrival:
    """Write it over the one that was read; as it then stands. Raises Conflict where that is not the one that stood."""
    encoded = msgspec.msgpack.encode(value)
    document = await store.put_document(ARRIVALS, document_name(name), encoded, expected=value.revision)
    if document is None:
        message = f"somebody else moves agent {name.agent!r} there, or breaks that off"
        raise Conflict(message, hint="try again", tenant=name.tenant, agent=name.agent)
    return msgspec.structs.replace(value, revision=document.revision)


async def identity(store: LogStore) -> str:
    """What tells this log from every other: a number that it was given once, and its generation, which a restored copy has another of."""
    await store.put_document(*IDENTITY, uuid7().hex.encode(), expected=0)
    document = await store.get_document(*IDENTITY)
    if document is None:
        raise IntegrityError("the log does not keep what was written")
    return f"{document.value.decode()}.{store.generation}"


def _record(value: bytes) -> TransferRecord:
    return msgspec.msgpack.decode(value, type=TransferRecord)
