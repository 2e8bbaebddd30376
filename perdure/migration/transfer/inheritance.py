"""What an agent's sealed bytes need at the target: keys, dictionaries, large values.

Sealed payloads travel as they are. The agent's own keys go with it, derived from the source's tenant key, which stays where it is; the target
wraps them under its tenant key, beside a data key of its own. Dictionaries of the tenant are sealed anew and may get other numbers. Large
values keep their names, which are keyed hashes of the source, and are sealed anew under the target's tenant key.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.engine import blobs
from perdure.engine.log.codec import decode_payload, event_context
from perdure.engine.log.records import AgentName, AgentRecord, SealedEvent
from perdure.errors import Conflict, IntegrityError
from perdure.limits import CONTROL_WRITE_ATTEMPTS_MAX
from perdure.migration.transfer.sides import Side, row_of
from perdure.security.framing import join_fields
from perdure.security.heirs import Era, join_material, split_material
from perdure.security.tenant_key import KEY_BYTES

__all__ = ["Inheritance", "carry_large"]


class Inheritance:
    """Of one pair of engines, for one run. Dictionaries are carried once a tenant, and again when the source has trained more."""

    def __init__(self, source: Side, target: Side) -> None:
        self._source = source
        self._target = target
        self._numbers: dict[str, dict[int, int]] = {}
        self._large: dict[str, bool] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def large(self, tenant: str, *, now: bool = False) -> bool:
        """Whether the tenant has any large value at the source; now: not only at the last look."""
        if not self._large.get(tenant, False) and (now or tenant not in self._large):
            found = await self._source.store.list_blobs((tenant, b""), 1)
            self._large[tenant] = bool(found) and found[0][0] == tenant
        return self._large[tenant]

    async def hand(self, row: AgentRecord, *, anew: bool = False, again: bool = False) -> AgentRecord:
        """Give the agent's row at the target, which is there, what it needs; the row as it then is. again: wrapped anew even where nothing
        changes, so that who compares with what stood before sees it.

        Raises as `give`; Conflict where others change it all the time."""
        store, name = self._target.store, AgentName(row.tenant, row.agent)
        for _ in range(CONTROL_WRITE_ATTEMPTS_MAX):
            heir = await row_of(self._target, name)
            wrapped = await self.give(row, heir, anew=anew, again=again)
            if wrapped == heir.data_key or await store.swap_data_keys([heir], [wrapped]) == 1:
                self._target.vault.forget(name)
                return msgspec.structs.replace(heir, data_key=wrapped)
        message = "the agent's key at the target is changed by others all the time"
        raise Conflict(message, hint="try again", tenant=row.tenant, agent=row.agent)

    async def give(self, row: AgentRecord, heir: AgentRecord | None, *, anew: bool = False, again: bool = False) -> bytes:
        """The wrapped key material for the agent's row at the target; heir: that row, where it has its key already. anew: look whether the source
        has rotated its tenant's key, or trained dictionaries, since the last time.

        The same bytes as the heir's where nothing would change, but for `again`. Raises KeyUnavailable, SealBroken, LimitExceeded."""
        eras = await self._eras(row, anew)
        key = await self._target.vault.ring.tenant_key(row.tenant)
        data_key = os.urandom(KEY_BYTES)
        if heir is not None and heir.data_key:
            material = await self._target.vault.ring.unwrap_material(row.tenant, row.agent, heir.data_key)
            data_key, standing = split_material(material)
            if standing == eras and not again:
                return heir.data_key
        return key.wrap_data_key(row.agent, join_material(data_key, eras))

    async def _eras(self, row: AgentRecord, anew: bool) -> list[Era]:
        ring = self._source.vault.ring
        material = await ring.unwrap_material(row.tenant, row.agent, row.data_key)
        data_key, inherited = split_material(material)
        async with self._turns.setdefault(row.tenant, asyncio.Lock()):  # many agents begin at once, and one of them looks for all
            first = anew or row.tenant not in self._numbers
            key = await ring.tenant_key(row.tenant, refresh=first)
            numbers = await self._dictionaries(row.tenant) if first else self._numbers[row.tenant]
        own = Era([(version, key.agent_key(version, data_key)) for version in key.versions], _moved(numbers))
        older = [
            Era(era.keys, _moved({id: numbers.get(era.dictionaries.get(id, id), id) for id in (*era.dictionaries, *numbers)}))
            for era in inherited
        ]
        return [own, *older]

    async def _dictionaries(self, tenant: str) -> dict[int, int]:
        """Id at the source → id at the target, of the tenant's own dictionaries."""
        known = dict(self._numbers.get(tenant, {}))
        theirs = await self._source.vault.book.load(tenant)
        for id in theirs.ids:
            found = theirs.find(id)
            if id not in known and found is not None:
                known[id] = await self._target.vault.book.adopt(tenant, found.content, id)
        self._numbers[tenant] = known
        return known


def _moved(numbers: dict[int, int]) -> dict[int, int]:
    return {old: new for old, new in sorted(numbers.items()) if old != new}


async def carry_large(source: Side, target: Side, name: AgentName, events: Sequence[SealedEvent]) -> int:
    """Put what these events refer to into the target, durable when this returns; how many values. Raises IntegrityError, SealBroken."""
    count = 0
    cipher = await source.vault.cipher(*name)
    for event in events:
        plaintext = await source.vault.opening(name.tenant, lambda event=event: cipher.open(event_context(event.id), event.payload))  # type: ignore[misc]
        payload = decode_payload(event, plaintext)
        if payload.references:
            for value in (*(change.value for change in payload.changes), payload.data):
                count += await _carry_within(source, target, name, value)
    return count


async def _carry_within(source: Side, target: Side, name: AgentName, value: Any) -> int:
    if isinstance(value, msgspec.msgpack.Ext):
        reference = blobs.Reference.from_extension(bytes(value.data))
        plain = await _carry(source, target, name, reference.name)
        # A large value may have large parts itself.
        return 1 + await _carry_within(source, target, name, msgspec.msgpack.decode(plain))
    parts = value.values() if type(value) is dict else value if type(value) is list else ()
    return sum([await _carry_within(source, target, name, part) for part in parts])


async def _carry(source: Side, target: Side, name: AgentName, blob: bytes) -> bytes:
    content = await source.store.get_blob(name.tenant, blob)
    if content is None:
        raise IntegrityError("a large value of the agent is not there", hint="run `perdure verify`", tenant=name.tenant, agent=name.agent)
    key = await source.vault.ring.key_for(name.tenant, content)
    plain = key.open_blob(blob, content)
    if await target.store.get_blob(name.tenant, blob) is None:
        theirs = await target.vault.ring.tenant_key(name.tenant)
        await target.store.put_blob(name.tenant, blob, theirs.seal(join_fields(b"blob", blob), plain))
    return plain
