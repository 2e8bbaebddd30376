"""One agent's way to this node: copied beside its work, compared, flipped, served.

The target does the flip itself: it has the state in memory and serves at once. Steps, after the reference in ADR 13:

1. The copy is loaded and follows the log. It is compared with the coordinator's own fold, and with what the source has in memory.
2. The record says `flipping`; only from then on may the agent be touched.
3. The source holds the agent, if it answers; its callers are sent here and wait. The copy takes the rest, and the log gives the agent to this
   node where it still stands exactly at the copy's epoch, version and chain hash. Refused because somebody appended: again, `FLIPS_MAX` times.
4. Refused every time, or the source does not answer: a fence (nobody may append), the rest of the tail, the same comparison, and the commit.
5. This node serves; the source is told; the end is told and written down.

A copy that differs stops the migration before anything was taken from the source.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from msgspec.structs import replace

from perdure.engine import steps
from perdure.engine.log.log import EventLog, Owned
from perdure.errors import Conflict, DeadlineExceeded, Denied, Fenced, IntegrityError, LimitExceeded, Overloaded, Unavailable
from perdure.migration.copy import Copy
from perdure.migration.ledger import Kept, Ledger
from perdure.migration.records import Migration, Phase, advanced
from perdure.migration.settling import COMMIT, FENCE, Settler, event, now_us
from perdure.migration.source import Links, SourceLink
from perdure.projections.fill import Base
from perdure.recovery.handover import Handed
from perdure.recovery.host import AgentHost
from perdure.recovery.serving import Loaded

__all__ = ["Aborted", "Arrival"]

FLIPS_MAX: Final = 3
ROUNDS_MAX: Final = 64
LAG_EVENTS_MAX: Final = 64
"""Converged: a round of following found no more events than this, in no more time than `ROUND_S_MAX`."""
ROUND_S_MAX: Final = 0.05
FENCED_LAG_EVENTS_MAX: Final = 5_000
"""Not converged after all rounds, and more events than this in the last one: the agent would stand still for too long."""
HOLD_DIGEST_BYTES_MAX: Final = 64 * 1024
"""States up to this size are compared once more while the source holds; larger ones were compared a moment before."""
LOOK_S: Final = 0.05
TELL_S: Final = 0.5
"""Pause between two notes of how far a waiting copy is."""
UNKNOWN_S: Final = 20.0
"""How long an answer that was lost is asked for again."""


class Aborted(Exception):
    """The migration cannot go on; why."""


class Arrival:
    """One migration, driven by its target."""

    def __init__(
        self, host: AgentHost, log: EventLog, ledger: Ledger, settler: Settler, links: Links, base: Base | None, kept: Kept
    ) -> None:
        self._host = host
        self._log = log
        self._ledger = ledger
        self._settler = settler
        self._base = base
        self._kept = kept
        self._facts: dict[str, Any] = {}
        migration = kept.migration
        self._name = migration.name
        self._source: SourceLink = links.to(migration.name, migration.source_address, host.name, host.address)
        self._held: Handed | None = None
        self._began_at = 0.0
        self._touched = False  # whether the log may hold, or get, something of this migration that was not refused

    @property
    def migration(self) -> Migration:
        """As it stands here."""
        return self._kept.migration

    async def run(self) -> Migration:
        """To the end. Raises Unavailable when the log is away; the migration is then settled when it is back."""
        try:
            try:
                owned = await self._move()
            except Aborted as problem:
                return await self._abort(str(problem))
            except (IntegrityError, Conflict, Overloaded, Denied) as problem:
                return await self._abort(f"{problem.code}: {problem.message}")
            return await self._served(owned)
        finally:
            self._host.expect_no_more(self._name)

    async def _move(self) -> Owned:
        await self._accept()
        self._log.vault.forget(self._name)
        record = await self._log.vault.record(*self._name)
        if (record.owner, record.epoch) != (self.migration.source, self.migration.epoch):
            raise Aborted(f"the agent belongs to node {record.owner!r} under epoch {record.epoch} meanwhile")
        self._host.check_room(self._name)
        copy = Copy(self._log, record, self._base)
        if self.migration.strategy == "cold":
            await self._enter("flipping")
            return await self._fence(copy)
        await self._copy(copy)
        await self._compare(copy)
        if self.migration.wait:
            await self._shadow(copy)
        await self._enter("flipping", **self._facts)
        steps.reach("migration.target.flipping")
        return await self._flip(copy)

    # --- before anything is touched ---
    async def _accept(self) -> None:
        if self.migration.phase == "planned":
            await self._enter("preparing")
        await self._ledger_change(session=self._host.session)
        steps.reach("migration.target.accepted")

    async def _copy(self, copy: Copy) -> None:
        """Load, then follow until what is left is small."""
        if self.migration.phase != "pre_copy":  # as an earlier session of this node has left it
            await self._enter("pre_copy")
        witness = self.migration.witness_version
        await copy.load(to_version=witness or None)
        steps.reach("migration.target.copied")
        if witness and copy.digest() != self.migration.witness_digest:
            raise Aborted(f"this node's copy at version {witness} is not what the coordinator folds")
        events, rounds = copy.version, 0
        while True:
            began_at = time.monotonic()
            more = await copy.follow()
            events, rounds = events + more, rounds + 1
            if more <= LAG_EVENTS_MAX and time.monotonic() - began_at <= ROUND_S_MAX:
                break
            if rounds >= ROUNDS_MAX:
                if more > FENCED_LAG_EVENTS_MAX:
                    raise Aborted(f"the copy does not catch up: {more} events in the last of {rounds} rounds")
                break
        self._facts.update(events=events, rounds=rounds, copied_version=copy.version)

    async def _compare(self, copy: Copy) -> None:
        """With what the source has in memory, at exactly its version."""
        for _ in range(FLIPS_MAX):
            stand = await self._source.stand()
            if stand is None:
                return  # it does not answer; the coordinator's fold and the chain have to do
            if stand.version < copy.version:
                continue
            await copy.follow(stand.version)
            if copy.version < stand.version:
                raise Aborted(f"the source is at version {stand.version}, which the log does not have")
            found = copy.digest()
            self._facts.update(digest_source=stand.digest, digest_target=found, verified_version=copy.version)
            if found != stand.digest:
                raise Aborted(f"this node's copy at version {copy.version} is not what the source has")
            steps.reach("migration.target.verified")
            return

    async def _shadow(self, copy: Copy) -> None:
        """Follow until it is told to go on; every now and then the copy is compared again."""
        told_at = time.monotonic()
        while not self.migration.go:
            await self._log.store.signal().wait(LOOK_S)
            await copy.follow()
            if time.monotonic() - told_at >= TELL_S:
                await self._compare(copy)
                await self._ledger_change(copied_version=copy.version, verified_version=self._facts.get("verified_version", 0))
                told_at = time.monotonic()
            else:
                await self._refresh()

    # --- the flip ---
    async def _flip(self, copy: Copy) -> Owned:
        self._host.expect(self._name, self.migration.source, self.migration.source_address)
        self._began_at = time.monotonic()
        self._held = await self._source.hold(with_digest=self.migration.bytes <= HOLD_DIGEST_BYTES_MAX)
        steps.reach("migration.target.held")
        for attempt in range(1, FLIPS_MAX + 1):
            await copy.follow()
            self._check_held(copy)
            self._facts.update(attempts=attempt, path="held" if self._held else "flip")
            steps.reach("migration.target.committing")
            try:
                return await self._commit(copy, self.migration.epoch)
            except Fenced as problem:
                raise Aborted(f"the agent was taken by others: {problem.message}") from problem
            except Conflict:
                continue  # somebody appended between the last look and the lock
        return await self._fence(copy)

    def _check_held(self, copy: Copy) -> None:
        held = self._held
        if held is not None and held.digest and held.version == copy.version:
            found = copy.digest()
            self._facts.update(digest_source=held.digest, digest_target=found, verified_version=copy.version)
            if found != held.digest:
                raise Aborted(f"this node's copy at version {copy.version} is not what the source has")

    async def _fence(self, copy: Copy) -> Owned:
        """Nobody may append from here on, until the commit or the abort."""
        if not self._began_at:
            self._began_at = time.monotonic()
            self._host.expect(self._name, self.migration.source, self.migration.source_address)
        migration = self.migration
        fence = event(migration, FENCE, "fence")
        try:
            fenced = await self._surely(lambda: self._log.fence_for(self._name, epoch=migration.epoch, event=fence))
        except Fenced as problem:
            raise Aborted(f"the agent was taken by others: {problem.message}") from problem
        self._note("fenced")
        steps.reach("migration.target.fenced")
        if migration.strategy == "cold":
            await copy.load()
            steps.reach("migration.target.copied")
        else:
            await copy.follow()
        steps.reach("migration.target.applied")
        self._note("verifying")
        if (copy.version, copy.chain) != (fenced.version, fenced.chain):
            raise Aborted(f"this node's copy at version {copy.version} is not where the fence stands, at {fenced.version}")
        self._check_witness(copy)
        self._facts.update(path="fence")
        steps.reach("migration.target.committing")
        try:
            return await self._commit(copy, fenced.epoch)
        except Conflict as problem:
            raise Aborted(f"the migration was aborted, or the agent taken by others: {problem.message}") from problem

    def _check_witness(self, copy: Copy) -> None:
        """The coordinator's digest, where the log has nothing newer than the fence."""
        migration = self.migration
        if migration.witness_version == copy.version - 1 and migration.witness_digest != copy.digest():
            raise Aborted(f"this node's copy at version {copy.version} is not what the coordinator folds")

    async def _commit(self, copy: Copy, epoch: int) -> Owned:
        commit = event(self.migration, COMMIT, "commit")
        if not self._host.holds_lease():
            raise Aborted("this node has lost its lease")
        owned = await self._surely(
            lambda: self._log.hand_over(self._name, self._host.name, epoch=epoch, version=copy.version, chain=copy.chain, event=commit)
        )
        steps.reach("migration.target.committed")
        # The commit changes no state: the copy is what the agent is at the commit's version, too.
        self._host.adopt(self._name, owned.epoch, Loaded(copy.document, owned.version))
        self._facts.update(
            downtime_target_ms=round((time.monotonic() - self._began_at) * 1000, 3),
            version=owned.version,
            checksum=owned.chain.hex(),
            final_epoch=owned.epoch,
        )
        steps.reach("migration.target.serving")
        return owned

    async def _surely(self, ask: Any) -> Owned:
        """Ask until the answer is known: a lost one is asked for again, under the same event id."""
        deadline = time.monotonic() + UNKNOWN_S
        before, self._touched = self._touched, True
        while True:
            try:
                owned: Owned = await ask()
                return owned
            except (Conflict, LimitExceeded):
                self._touched = before
                raise
            except (Unavailable, DeadlineExceeded):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(LOOK_S)

    # --- the end ---
    async def _served(self, owned: Owned) -> Migration:
        held_s = await self._source.left(owned.epoch)
        steps.reach("migration.target.told")
        integrity = "verified" if self._facts.get("digest_source") else "chain"
        facts = {**self._facts, "integrity": integrity, "downtime_source_ms": round((held_s or 0.0) * 1000, 3)}
        return await self._settler.close(self._kept, "committed", **facts)

    async def _abort(self, reason: str) -> Migration:
        """Nothing more is done for it here; what the log says decides, and is brought about where it says nothing."""
        try:
            now = await self._ledger.get(self._name)
            if now is None or now.migration.id != self.migration.id:
                return self.migration
            if not self._touched and now.migration.open:
                # All that was asked of the log was refused: the source may go on as it is.
                return await self._settler.close(now, "aborted", reason=reason, **self._facts)
            return await self._settler.settle(now, reason)
        finally:
            await self._source.go_on()

    # --- the record ---
    async def _enter(self, phase: Phase, **facts: Any) -> None:
        try:
            self._kept = await self._ledger.change(self._kept, advanced(self.migration, phase, now_us(), **facts))
        except Conflict:
            await self._refresh()
            self._kept = await self._ledger.change(self._kept, advanced(self.migration, phase, now_us(), **facts))

    def _note(self, phase: Phase) -> None:
        """As `_enter`, written down with the next one: there is no time for it now."""
        self._kept = self._kept._replace(migration=advanced(self.migration, phase, now_us()))

    async def _ledger_change(self, **facts: Any) -> None:
        def how(now: Migration) -> Migration | None:
            return replace(now, **facts) if now.open else None

        kept = await self._ledger.amend(self._name, self.migration.id, how)
        self._believe(kept)

    async def _refresh(self) -> None:
        self._believe(await self._ledger.get(self._name))

    def _believe(self, kept: Kept | None) -> None:
        if kept is None or kept.migration.id != self.migration.id:
            raise Aborted("the record is not there any more")
        if not kept.migration.open:
            raise Aborted(kept.migration.error or "it was aborted")
        self._kept = kept
