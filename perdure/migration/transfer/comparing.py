"""Do both ends come to the same state?

The source's is the one that it serves, from its cache, a snapshot or the log. The target folds every event that was put in, with its own keys,
while more are put in. What is compared once is not folded, and not hashed, again: the last look, while nobody serves the agent, costs its
last events only: what either fold has touched is encoded canonically at both ends and must be the same bytes, and one end is hashed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from perdure.engine.cells import split
from perdure.engine.digest import IncrementalDigest, canonical
from perdure.engine.log.records import AgentName, AgentRecord, SealedEvent, to_microseconds
from perdure.engine.replay import Folded, fold_log, fold_page
from perdure.errors import IntegrityError, Unavailable
from perdure.migration.transfer.sides import Side
from perdure.projections.fill import fold_on, fold_whole

__all__ = ["Comparing"]

BYTES_AT_ONCE: Final = 1024 * 1024
"""Of encoded cells, until others on the loop have their turn. A thread would take the interpreter's lock anew for each cell: that cost more than it
gave, and held up the loop as well."""


class _End:
    """One end's state, and its digest."""

    def __init__(self, side: Side, row: AgentRecord) -> None:
        self._side = side
        self._row = row
        self.touched: set[bytes] | None = None
        """Cells that were put or removed since both ends were found the same; None: they were never."""
        self.folded: Folded | None = None

    def forget(self) -> None:
        """As if there had been nothing."""
        self.folded = None
        self.touched = None

    async def follow(self, version: int) -> None:
        """Fold on what is there already. Where that fails nothing is left of it: the document was changed in place."""
        before = self.folded
        assert before is not None, "there is something to go on from"
        if version <= before.version:
            return
        store, vault = self._side.store, self._side.vault
        self.folded = None
        self.folded = await fold_log(store, vault, self._row, start=before, to_version=version, cells=self.touched)

    async def take(self, page: Sequence[SealedEvent]) -> None:
        """Fold on events that are not in this end's log yet, with its keys. Raises as `follow`."""
        before = self.folded
        assert before is not None, "there is something to go on from"
        self.folded = None
        self.folded = await fold_page(self._side.vault, before, page, cells=self.touched)

    async def fold(self, version: int) -> None:
        """As it is served: from a snapshot, where there is one."""
        self.folded = await fold_on(self._side.store, self._side.vault, self._row, self._side.base, to_version=version)

    async def fold_whole(self, version: int, *, floored: bool) -> None:
        """From its first event; floored: that was removed, and what is left follows a snapshot."""
        # Known before the first page, so that pages are opened as a whole.
        await self._side.vault.look_up([AgentName(self._row.tenant, self._row.agent)])
        base = self._side.base if floored else None
        fold = fold_whole if floored else fold_on
        self.folded = await fold(self._side.store, self._side.vault, self._row, base, to_version=version)


class Comparing:
    """The two states of one agent. floored: its first events were removed. digest: of the last states that were the same."""

    def __init__(self, source: Side, target: Side, row: AgentRecord, heir: AgentRecord, *, floored: bool) -> None:
        self._source = source
        self._floored = floored
        self._row = row
        self._here = _End(source, row)
        self._there = _End(target, heir)
        self._hashed: IncrementalDigest | None = None
        self.digest = b""

    def anew(self) -> Comparing:
        """Itself, as if nothing had been compared."""
        self._here.forget()
        self._there.forget()
        return self

    async def serve(self) -> int:
        """Take the state that the source serves now from its cache; its version, which is compared next (`stands`). Where the cache has none it is
        folded then, and put into no cache: the agent leaves."""
        self._here.forget()
        if not await self._is_cached():
            (head,) = await self._source.store.heads([self._row])
            return head.version
        read = await self._source.reader.state(self._row.tenant, self._row.agent)
        time_us = 0 if read.time is None else to_microseconds(read.time)
        self._here.folded = Folded(read.document, read.version, read.epoch, time_us, b"", []) if read.version else None
        return read.version

    async def _is_cached(self) -> bool:
        try:
            return await self._source.cache.token(self._row.tenant, self._row.agent) is not None
        except Unavailable:
            return False

    def stands(self, chain: bytes) -> None:
        """What was served stands at this chain hash of the source's log."""
        if self._here.folded is not None:
            self._here.folded = self._here.folded._replace(chain=chain)

    async def follow(self, version: int) -> None:
        """Fold what the target has up to a version: from its first event, or from the snapshot that stands for those that are gone."""
        if self._there.folded is None:
            self._there.forget()
            await self._there.fold_whole(version, floored=self._floored)
        else:
            await self._there.follow(version)

    async def at(self, version: int, rest: Sequence[SealedEvent] = ()) -> None:
        """Compare the states at a version, not before the last one, or behind the rest that comes after it and the target does not have yet.

        Raises IntegrityError."""
        if self._here.folded is None:
            self._here.forget()
            await self._here.fold(version)
        else:
            await self._here.follow(version)
        await self.follow(version)
        if rest:
            for end in (self._here, self._there):
                await end.take(rest)
            version = rest[-1].version
        here, there = self._here.folded, self._there.folded
        if here is None or there is None or (here.version, here.chain) != (there.version, there.chain) or here.version != version:
            raise self._other(f"the target has another history than the source's up to version {version}")
        if not await self._are_same(here.document, there.document):
            raise self._other(f"the target comes to another state at version {version}")

    async def _are_same(self, here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
        """Whether two documents are the same, by what either fold has touched since they were; then `digest` is theirs.

        Invariant: `_hashed` is of the documents as they were last found the same, or None."""
        ours, theirs = self._here.touched, self._there.touched
        touched = None if ours is None or theirs is None else ours | theirs
        if touched == set():
            return True  # since the last look, which found them the same
        hashed, self._hashed = self._hashed, None
        if touched is None or hashed is None:
            touched, hashed = None, IncrementalDigest({})
        if not await _hash_same(split(here), split(there), touched, hashed):
            return False
        self._hashed, self.digest = hashed, hashed.digest()
        self._here.touched, self._there.touched = set(), set()
        return True

    def _other(self, message: str) -> IntegrityError:
        hint = "the source goes on as before; run `perdure verify` at both ends"
        return IntegrityError(message, hint=hint, tenant=self._row.tenant, agent=self._row.agent)


async def _hash_same(ours: Mapping[bytes, Any], theirs: Mapping[bytes, Any], names: set[bytes] | None, hashed: IncrementalDigest) -> bool:
    """Whether these cells (None: all of them) are the same at both ends. Each is encoded once an end, and hashed once."""
    ahead = 0
    for name in ours.keys() | theirs.keys() if names is None else names:
        if (name in ours) is not (name in theirs):
            return False
        if name not in ours:
            hashed.remove(name)
            continue
        encoded = canonical(ours[name])
        if encoded != canonical(theirs[name]):
            return False
        hashed.put(name, encoded)
        ahead += len(encoded)
        if ahead >= BYTES_AT_ONCE:
            ahead = 0
            await asyncio.sleep(0)
    return True
