"""The directory of agents, as the client shows it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from perdure import limits
from perdure.client.filters import check_name
from perdure.client.schemas import Schemas
from perdure.engine.log.records import AgentName, AgentRecord, from_microseconds
from perdure.engine.vault import Vault
from perdure.errors import InvalidInput, LimitExceeded
from perdure.projections.directory import Directory, DirectoryEntry, Status

__all__ = ["AgentDirectory", "ListedAgent"]


class ListedAgent(msgspec.Struct, frozen=True):
    """One agent of the directory. version: its newest in the log; labels: as `describe` set them."""

    agent: str
    type: str
    labels: dict[str, str]
    version: int
    status: str
    owner: str
    epoch: int
    created: datetime


class AgentDirectory:
    """`engine.directory`: lists agents by tenant, type, labels and status, in pages; sets their types and labels."""

    def __init__(self, vault: Vault, schemas: Schemas) -> None:
        self._vault = vault
        self._schemas = schemas
        self._directory = Directory(vault.store)

    async def list(
        self,
        tenant: str,
        *,
        type: str | None = None,
        labels: Mapping[str, str] | None = None,
        status: Status | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[ListedAgent]:
        """A page of the tenant's agents in order of their ids, after the id `after`. Raises InvalidInput, LimitExceeded."""
        _check_facts(type or "", labels or {})
        entries: list[DirectoryEntry] = []
        following: str | None = after
        while following is not None and (not entries or len(entries) < limit):
            # With a status a page may be short and still not be the last.
            page = await self._directory.page(tenant, type=type, labels=labels, status=status, after=following, limit=limit - len(entries))
            entries += page.entries
            following = page.after
        return [_listed(entry) for entry in entries]

    async def describe(self, name: AgentName, *, type: str, labels: Mapping[str, str]) -> None:
        """Set an agent's type and labels; the agent is made when it is not there. Raises InvalidInput, LimitExceeded."""
        check_name(name)
        _check_facts(type, labels)
        record, _ = await self._vault.obtain_served(name)
        await self._describe(record, type, labels)
        await self._schemas.note_type(record.type, type)

    async def obtain_type(self, name: AgentName, type: str) -> str:
        """The agent's type; an agent without one gets this one."""
        check_name(name)
        _check_facts(type, {})
        record, _ = await self._vault.obtain_served(name)
        if record.type:
            return record.type
        await self._describe(record, type, record.labels)
        return type

    async def _describe(self, record: AgentRecord, type: str, labels: Mapping[str, str]) -> None:
        await self._vault.store.describe_agent(record, type=type, labels=labels)
        self._vault.forget(AgentName(record.tenant, record.agent))


def _check_facts(type: object, labels: object) -> None:
    if not isinstance(type, str) or (type and not type.isprintable()):
        raise InvalidInput(f"an agent's type is a printable name, not {type!r:.80}")
    if len(type) > limits.TYPE_LENGTH_MAX:
        raise LimitExceeded(f"an agent's type has {len(type)} characters, the limit is {limits.TYPE_LENGTH_MAX}")
    if not isinstance(labels, Mapping):
        raise InvalidInput(f"labels are a map, not a {labels.__class__.__qualname__}")
    if len(labels) > limits.LABELS_MAX:
        raise LimitExceeded(f"{len(labels)} labels, the limit is {limits.LABELS_MAX}")
    for key, value in labels.items():
        if not (isinstance(key, str) and isinstance(value, str) and key.isprintable() and value.isprintable() and key):
            raise InvalidInput(f"label {key!r:.80} = {value!r:.80} is not a printable name and text")
        if max(len(key), len(value)) > limits.LABEL_LENGTH_MAX:
            raise LimitExceeded(f"label {key!r:.80} is longer than {limits.LABEL_LENGTH_MAX} characters")


def _listed(entry: DirectoryEntry) -> ListedAgent:
    # The row's wrapped key stays inside.
    row = entry.record
    created = from_microseconds(row.created_us)
    return ListedAgent(row.agent, row.type, row.labels, entry.version, str(entry.status), row.owner, row.epoch, created)
