"""One agent's way to this node: copied beside its work, compared, flipped, served.

The target does the flip itself: it has the state in memory and serves at once. ADR 13 says why each step is as it is:

1. The copy is loaded and follows the log. It is compared with the coordinator's own fold, and with what the source has in memory.
2. The record says `flipping`; only from then on may the agent be touched.
3. The source holds the agent, if it answers; its callers are sent here and wait. The copy takes the rest, and the log gives the agent to this
   node where it still stands exactly at the copy's epoch, version and chain hash. Refused because somebody appended: again, `FLIPS_MAX` times.
4. Refused every time, or the source is to stand still: a fence (nobody may append), the rest of the tail, the same comparison, and the commit.
5. This node serves; the source is told; the end is told and written down.

A copy that differs stops the migration before anything was taken from the source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from perdure.engine import steps
from perdure.engine.log.contract import AgentRecord
from perdure.engine.log.log import Owned
from perdure.errors import AlreadyExists, Conflict, Fenced, InvalidInput, Overloaded, PerdureError, Unavailable
from perdure.migration.coordinator import Coordinator
from perdure.migration.copy import Copy, Copying
from perdure.migration.ledger import Kept
from perdure.migration.planning import rollback_after_mismatch
from perdure.migration.records import Migration, Phase, advanced
from perdure.migration.settling import COMMIT, FENCE, Settler, event, now_us, surely
from perdure.migration.source import Links, SourceLink
from perdure.recovery.handover import Handed
from perdure.recovery.host import AgentHost
from perdure.recovery.serving import Loaded

__all__ = ["Aborted", "Arrival", "Superseded"]

FLIPS_MAX: Final = 3
HOLD_DIGEST_BYTES_MAX: Final = 64 * 1024
"""States up to this size are compared once more while the source holds; larger ones were compared a moment before, and are once more after."""
LOOK_S: Final = 0.05
BEAT_S: Final = 2.0
"""Pause between two signs of life while a large agent is copied."""
COMPARE_S: Final = 0.5
"""Pause between two comparisons of a copy that waits."""
SHADOW_COMPARISONS_MIN: Final = 3
"""How often a blue-green migration compares before it flips."""

Result = TypeVar("Result")


class Aborted(Exception):
    """The migration cannot go on; why."""


class Superseded(Exception):
    """Another process drives this migration, or it has ended."""


class Arrival:
    """One migration, driven by its target."""

    def __init__(self, host: AgentHost, settler: Settler, links: Links, copying: Copying, kept: Kept) -> None:
        self._host = host
        self._log = settler.log
        self._ledger = settler.ledger
        self._settler = settler
        self._copying = copying
        self._kept = kept
        self._facts: dict[str, Any] = {}
        migration = kept.migration
        self._name = migration.name
        self._source: SourceLink = links.to(migration.name, migration.source_address, host.name, host.address)
        self._held: Handed | None = None
        self._began_at = 0.0
        self._first = True  # whether commands that wait here are written with the commit
        self._touched = False  # whether the log may hold, or get, something of this migration that was not refused

    @property
    def migration(self) -> Migration:
        """As it stands here."""
        return self._kept.migration

    async def run(self) -> None:
        """To the end. Raises Unavailable when the log is away; the migration is then settled when it is back."""
        copy: Copy | None = None
        try:
            try:
                copy = await self._prepare()
                owned = await self._move(copy)
            except Superseded:
                return
            except Aborted as problem:
                return await self._abort(str(problem))
            except PerdureError as problem:
                if isinstance(problem, Unavailable) and not isinstance(problem, Overloaded):
                    raise
                return await self._abort(f"{problem.code}: {problem.message}")
            except Exception as problem:
                # A fold that fails on what the agent holds, e.g. of another version: the source goes on.
                return await self._abort(f"{type(problem).__name__}: {problem}")
            await self._served(copy, owned)
        finally:
            self._host.expect_no_more(self._name)

    async def _prepare(self) -> Copy:
        if self.migration.phase == "planned":
            await self._enter("preparing", session=self._host.session)
        else:
            await self._write(session=self._host.session)
        steps.reach("migration.target.accepted")
        self._host.check_room(self._name)
        self._record = await self._owned_by_source()
        return self._copying.of(self._record)

    async def _owned_by_source(self) -> AgentRecord:
        """The agent's row now. The source may have taken it anew meanwhile, as a node does after its start; another may not."""
        self._log.vault.forget(self._name)
        record = await self._log.vault.record(*self._name)
        if record.owner != self.migration.source:
            raise Aborted(f"the agent belongs to node {record.owner!r} meanwhile")
        return record

    async def _move(self, copy: Copy) -> Owned:
        stands_still = self.migration.strategy in ("cold", "emergency")
        if not stands_still:
            await self._copy(copy)
            await self._compare(copy)
            await self._shadow(copy)
            copy.read_only()  # now, while nobody waits for it
        await self._enter("flipping", **self._facts, epoch=(await self._owned_by_source()).epoch)
        steps.reach("migration.target.flipping")
        self._host.expect(self._name, self.migration.source, self.migration.source_address)
        await self._look_ahead(copy)
        self._began_at = time.monotonic()
        self._held = await self._source.hold(with_digest=self.migration.bytes <= HOLD_DIGEST_BYTES_MAX and not self.migration.distrusted)
        steps.reach("migration.target.held")
        return (None if stands_still else await self._flip(copy)) or await self._fence(copy)

    # --- before anything is touched ---
    async def _copy(self, copy: Copy) -> None:
        if self.migration.phase != "pre_copy":  # as an earlier session of this node has left it
            await self._enter("pre_copy")
        await self._load(copy)
        events, rounds, converged = await self._beside(copy.catch_up())
        self._facts.update(events=copy.loaded_events + events, rounds=rounds, copied_version=copy.version)
        if not converged:
            raise Aborted(f"the copy does not catch up: it is still behind after {rounds} rounds")

    async def _load(self, copy: Copy) -> None:
        """Up to where the coordinator has looked, and compare with what it saw."""
        migration = self.migration
        began_at = time.monotonic()
        await self._beside(copy.load(to_version=migration.witness_version or None, transfer=migration.transfer))
        steps.reach("migration.target.copied")
        self._facts.update(copy_s=round(time.monotonic() - began_at, 6), events=copy.loaded_events)
        if migration.witness_digest and copy.version == migration.witness_version:
            found = copy.digest()
            self._facts.update(digest_target=found, verified_version=copy.version)
            if found != migration.witness_digest:
                raise Aborted(f"digest mismatch: this node's copy at version {copy.version} is not what the coordinator folds")

    async def _beside(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do what may take long, and meanwhile show that it goes on and look whether it was aborted."""
        task = asyncio.create_task(work, name=f"perdure-copy-{self._name.agent}")
        try:
            while not (await asyncio.wait([task], timeout=BEAT_S))[0]:
                await self._write(beats=self.migration.beats + 1)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _compare(self, copy: Copy) -> None:
        """With what the source has in memory, at exactly its version."""
        for _ in range(0 if self.migration.distrusted else FLIPS_MAX):
            stand = await self._source.stand()
            if stand is None:
                return  # it does not answer; the coordinator's fold and the chain have to do
            if stand.version < copy.version:
                continue
            await copy.follow(stand.version)
            if copy.version < stand.version:
                raise Aborted(f"the source is at version {stand.version}, which the log does not have")
            self._same(copy, stand.digest)
            steps.reach("migration.target.verified")
            return

    def _same(self, copy: Copy, digest: str) -> None:
        found = copy.digest()
        self._facts.update(digest_source=digest, digest_target=found, verified_version=copy.version)
        if found != digest:
            raise Aborted(f"digest mismatch: this node's copy at version {copy.version} is not what the source has")

    async def _shadow(self, copy: Copy) -> None:
        """Follow until it is told to go on; every now and then the copy is compared again."""
        left = SHADOW_COMPARISONS_MIN - 1 if self.migration.strategy == "blue_green" else 0
        compared_at = time.monotonic()
        while left > 0 or not self.migration.go:
            await self._log.store.signal().wait(LOOK_S)
            await copy.catch_up()
            if time.monotonic() - compared_at >= COMPARE_S:
                await self._compare(copy)
                left -= 1
                await self._write(copied_version=copy.version, verified_version=self._facts.get("verified_version", 0))
                compared_at = time.monotonic()
            else:
                self._believe(await self._ledger.get(self._name))

    # --- the flip ---
    async def _flip(self, copy: Copy) -> Owned | None:
        """None when somebody appended every time between the look and the lock."""
        for attempt in range(1, FLIPS_MAX + 1):
            held = self._held
            await self._look_ahead(copy)
            if held is None or held.version != copy.version:
                await copy.follow()
            if held is not None and held.digest and held.version == copy.version:
                self._same(copy, held.digest)
            self._facts.update(attempts=attempt, path="held" if held else "flip")
            try:
                return await self._commit(copy, self.migration.epoch)
            except Fenced as problem:
                raise Aborted(f"the agent was taken by others: {problem.message}") from problem
            except (AlreadyExists, InvalidInput):
                self._first = False  # a command that had taken effect before, or is refused: each for itself, then
            except Conflict:
                continue
        return None

    async def _look_ahead(self, copy: Copy) -> None:
        """One round trip tells the copy what the agent did, and the log's writer where its partition stands: the commit then needs one, too."""
        events = await self._log.look_ahead(self._record)
        if copy.loaded:
            await copy.take(events)

    async def _fence(self, copy: Copy) -> Owned:
        """Nobody may append from here on, until the commit or the abort."""
        migration = self.migration
        fence = event(migration, FENCE, "fence")
        try:
            fenced = await self._surely(lambda: self._log.fence_for(self._name, epoch=migration.epoch, event=fence))
        except Fenced as problem:
            raise Aborted(f"the agent was taken by others: {problem.message}") from problem
        self._touched = True
        if copy.loaded:
            self._note("fenced")
        else:
            await self._enter("fenced")  # the agent stands still for as long as the copy takes; a record more makes no difference
        steps.reach("migration.target.fenced")
        if not copy.loaded:
            await self._load(copy)
        await copy.follow()
        steps.reach("migration.target.applied")
        self._note("verifying")
        if (copy.version, copy.chain) != (fenced.version, fenced.chain):
            raise Aborted(f"this node's copy at version {copy.version} is not where the fence stands, at {fenced.version}")
        held = self._held
        if held is not None and held.digest and held.version == copy.version - 1:  # the fence itself changes no state
            self._same(copy, held.digest)
        self._facts.update(path="fence")
        try:
            try:
                return await self._commit(copy, fenced.epoch)
            except (AlreadyExists, InvalidInput):
                self._first = False
                return await self._commit(copy, fenced.epoch)
        except Conflict as problem:
            raise Aborted(f"the migration was aborted, or the agent taken by others: {problem.message}") from problem

    async def _commit(self, copy: Copy, epoch: int) -> Owned:
        # The commit changes no state: the copy is what the agent is at the commit's version, too.
        staged = self._host.stage(self._name, epoch + 1, Loaded(copy.read_only(), copy.version + 1))
        first = await self._host.decide_first(staged) if self._first and self._log.appends_straight(self._name) else []
        steps.reach("migration.target.committing")
        if not self._host.holds_lease():
            raise Aborted("this node has lost its lease")
        commit = event(self.migration, COMMIT, "commit")
        owned = await self._surely(
            lambda: self._log.hand_over(
                self._name, self._host.name, epoch=epoch, version=copy.version, chain=copy.chain, event=commit, first=first
            )
        )
        steps.reach("migration.target.committed")
        # Elsewhere it stands only where an earlier try of this very commit was written at a place of its own.
        expected = (owned.version, owned.epoch) == (copy.version + 1 + len(first), epoch + 1)
        self._host.adopt(staged, wrote_first=bool(first), state_known=expected)
        self._facts.update(downtime_target_ms=round((time.monotonic() - self._began_at) * 1000, 3))
        steps.reach("migration.target.serving")
        return owned

    async def _surely(self, ask: Any) -> Owned:
        before, self._touched = self._touched, True
        try:
            owned: Owned = await surely(ask)
        except (Conflict, InvalidInput):
            self._touched = before  # refused: the log has nothing of it
            raise
        return owned

    # --- the end ---
    async def _served(self, copy: Copy, owned: Owned) -> None:
        left = await self._source.left(owned.epoch)
        steps.reach("migration.target.told")
        integrity = "verified" if self._facts.get("digest_source") else "chain"
        if left is not None and left.digest and left.version == copy.version and not self.migration.distrusted:
            integrity = "verified" if copy.digest() == left.digest else "mismatch"
            self._facts.update(digest_source=left.digest, digest_target=copy.digest(), verified_version=copy.version)
        held_s = left.held_s if left is not None else 0.0
        facts = {**self._facts, "integrity": integrity, "downtime_source_ms": round(held_s * 1000, 3)}
        if owned.version == copy.version + 1:  # nothing was written with the commit: it is the newest event
            facts |= {"final_epoch": owned.epoch, "version": owned.version, "checksum": owned.chain.hex()}
        done = await self._settler.close(self._kept.migration, "committed", known=self._kept, **facts)
        if done.integrity == "mismatch":
            await self._go_back(done)

    async def _go_back(self, done: Migration) -> None:
        """What this node has is not what the source had: the source folds the log anew and takes the agent back."""
        await Coordinator(self._log).begin(rollback_after_mismatch(done), distrusted=True, target_address=done.source_address)

    async def _abort(self, reason: str) -> None:
        """Nothing more is done for it here; what the log says decides, and is brought about where it says nothing."""
        self._host.expect_no_more(self._name)
        if not self._touched:
            # All that was asked of the log was refused, and nothing more will be asked: the source may go on as it is.
            await self._source.go_on()
        try:
            now = await self._ledger.get(self._name)
            if now is None or now.migration.id != self.migration.id or not now.migration.open:
                return
            if self._touched:
                await self._settler.settle(now, reason)
            else:
                await self._settler.close(now.migration, "aborted", reason=reason, **self._facts)
        finally:
            if self._touched:
                await self._source.go_on()

    # --- the record ---
    async def _enter(self, phase: Phase, **facts: Any) -> None:
        """The next phase, wherever the record has got to meanwhile by facts alone."""
        self._believe(
            await self._ledger.amend(
                self._name,
                self.migration.id,
                lambda now: advanced(self._own(now), phase, now_us(), **facts) if now.open else None,
                known=self._kept,
            )
        )

    def _note(self, phase: Phase) -> None:
        """As `_enter`, written down with the end: there is no time for it now."""
        self._kept = self._kept._replace(migration=advanced(self.migration, phase, now_us()))

    async def _write(self, **facts: Any) -> None:
        self._believe(
            await self._ledger.amend(
                self._name, self.migration.id, lambda now: replace(now, **facts) if now.open else None, known=self._kept
            )
        )

    def _own(self, now: Migration) -> Migration:
        if now.session not in (0, self._host.session):
            raise Superseded(f"session {now.session} of this node drives it")
        return now

    def _believe(self, kept: Kept | None) -> None:
        if kept is None or kept.migration.id != self.migration.id:
            raise Superseded("the record is not there any more")
        if not kept.migration.open:
            raise Aborted(kept.migration.error or "it was aborted")
        self._kept = Kept(self._own(kept.migration), kept.revision)
