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

import time
from typing import Any, Final

from perdure.engine import steps
from perdure.engine.log.log import Owned
from perdure.engine.log.records import AgentRecord
from perdure.errors import AlreadyExists, Conflict, Fenced, InvalidInput, Overloaded, PerdureError, Unavailable
from perdure.migration.coordinator import Coordinator
from perdure.migration.copy import Copy, Copying
from perdure.migration.driven import Aborted, Driven, Superseded
from perdure.migration.ledger import Kept
from perdure.migration.planning import rollback_after_mismatch
from perdure.migration.preparation import Preparation
from perdure.migration.records import Migration
from perdure.migration.settling import COMMIT, FENCE, Settler, event, surely
from perdure.migration.source import Links, SourceLink
from perdure.recovery.handover import Handed
from perdure.recovery.host import AgentHost
from perdure.recovery.serving import Loaded

__all__ = ["Arrival"]

FLIPS_MAX: Final = 3
HOLD_DIGEST_BYTES_MAX: Final = 64 * 1024
"""States up to this size are compared once more while the source holds; larger ones were compared a moment before, and are once more after."""


class Arrival:
    """One migration, driven by its target."""

    def __init__(self, host: AgentHost, settler: Settler, links: Links, copying: Copying, kept: Kept) -> None:
        self._host = host
        self._log = settler.log
        self._ledger = settler.ledger
        self._settler = settler
        self._copying = copying
        self._driven = Driven(settler.ledger, kept, lambda: host.session)
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
        return self._driven.migration

    async def run(self) -> None:
        """To the end. Raises Unavailable when the log is away; the migration is then settled when it is back."""
        try:
            try:
                prepared = await self._prepare()
                owned = await self._move(prepared)
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
            await self._served(prepared.copy, owned)
        finally:
            self._host.expect_no_more(self._name)

    async def _prepare(self) -> Preparation:
        if self.migration.phase == "planned":
            await self._driven.enter("preparing", session=self._host.session)
        else:
            await self._driven.write(session=self._host.session)
        steps.reach("migration.target.accepted")
        self._host.check_room(self._name)
        self._record = await self._owned_by_source()
        return Preparation(self._driven, self._source, self._copying.of(self._record), self._log.store.signal())

    async def _owned_by_source(self) -> AgentRecord:
        """The agent's row now. The source may have taken it anew meanwhile, as a node does after its start; another may not."""
        self._log.vault.forget(self._name)
        record = await self._log.vault.record(*self._name)
        if record.owner != self.migration.source:
            raise Aborted(f"the agent belongs to node {record.owner!r} meanwhile")
        return record

    async def _move(self, prepared: Preparation) -> Owned:
        copy = prepared.copy
        stands_still = self.migration.strategy in ("cold", "emergency")
        if not stands_still:
            await prepared.bring()
            await prepared.compare()
            await prepared.shadow()
            copy.read_only()  # now, while nobody waits for it
        await self._driven.enter("flipping", **self._driven.facts, epoch=(await self._owned_by_source()).epoch)
        steps.reach("migration.target.flipping")
        self._host.expect(self._name, self.migration.source, self.migration.source_address)
        await self._look_ahead(copy)
        self._began_at = time.monotonic()
        with_digest = self.migration.bytes <= HOLD_DIGEST_BYTES_MAX and not self.migration.distrusted
        self._held = await self._source.hold(with_digest=with_digest, after=copy.version)
        steps.reach("migration.target.held")
        return (None if stands_still else await self._flip(prepared)) or await self._fence(prepared)

    # --- the flip ---
    async def _flip(self, prepared: Preparation) -> Owned | None:
        """None when somebody appended every time between the look and the lock."""
        copy = prepared.copy
        for attempt in range(1, FLIPS_MAX + 1):
            held = self._held
            if attempt > 1 or held is None or not await self._told(copy, held):
                await self._look_ahead(copy)
            if held is None or held.version != copy.version:
                await copy.follow()
            if held is not None and held.digest and held.version == copy.version:
                prepared.same(held.digest)
            self._driven.facts.update(attempts=attempt, path="held" if held else "flip")
            try:
                return await self._commit(copy, self.migration.epoch)
            except Fenced as problem:
                raise Aborted(f"the agent was taken by others: {problem.message}") from problem
            except (AlreadyExists, InvalidInput):
                self._first = False  # a command that had taken effect before, or is refused: each for itself, then
            except Conflict:
                continue
        return None

    async def _told(self, copy: Copy, held: Handed) -> bool:
        """Whether the source's answer is all that is missing: what it appended last came with it, and is held to the chain as if it were read.
        What it wrote to a log that was restored or promoted meanwhile is nothing to go by."""
        if held.generation != self._log.store.generation:
            return False
        taken = await copy.take(held.tail)
        return copy.version == held.version and self._log.learn(taken)

    async def _look_ahead(self, copy: Copy) -> None:
        """One round trip tells the copy what the agent did, and the log's writer where its partition stands: the commit then needs one, too."""
        events = await self._log.look_ahead(self._record)
        if copy.loaded:
            await copy.take(events)

    async def _fence(self, prepared: Preparation) -> Owned:
        """Nobody may append from here on, until the commit or the abort."""
        migration, copy = self.migration, prepared.copy
        fence = event(migration, FENCE, "fence")
        try:
            fenced = await self._surely(lambda: self._log.fence_for(self._name, epoch=migration.epoch, event=fence))
        except Fenced as problem:
            raise Aborted(f"the agent was taken by others: {problem.message}") from problem
        self._touched = True
        if copy.loaded:
            self._driven.note("fenced")
        else:
            await self._driven.enter("fenced")  # the agent stands still for as long as the copy takes; a record more makes no difference
        steps.reach("migration.target.fenced")
        if not copy.loaded:
            await prepared.load()
        await copy.follow()
        steps.reach("migration.target.applied")
        self._driven.note("verifying")
        if (copy.version, copy.chain) != (fenced.version, fenced.chain):
            raise Aborted(f"this node's copy at version {copy.version} is not where the fence stands, at {fenced.version}")
        held = self._held
        if held is not None and held.digest and held.version == copy.version - 1:  # the fence itself changes no state
            prepared.same(held.digest)
        self._driven.facts.update(path="fence")
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
        self._driven.facts.update(downtime_target_ms=round((time.monotonic() - self._began_at) * 1000, 3))
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
        integrity = "verified" if self._driven.facts.get("digest_source") else "chain"
        if left is not None and left.digest and left.version == copy.version and not self.migration.distrusted:
            integrity = "verified" if copy.digest() == left.digest else "mismatch"
            self._driven.facts.update(digest_source=left.digest, digest_target=copy.digest(), verified_version=copy.version)
        held_s = left.held_s if left is not None else 0.0
        facts = {**self._driven.facts, "integrity": integrity, "downtime_source_ms": round(held_s * 1000, 3)}
        if owned.version == copy.version + 1:  # nothing was written with the commit: it is the newest event
            facts |= {"final_epoch": owned.epoch, "version": owned.version, "checksum": owned.chain.hex()}
        done = await self._settler.close(self.migration, "committed", known=self._driven.kept, **facts)
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
                await self._settler.close(now.migration, "aborted", reason=reason, **self._driven.facts)
        finally:
            if self._touched:
                await self._source.go_on()
