"""Safeguards: operations that take something away need a yes or an approval, happen once per approval, and are told in the audit trail.

The trail is an agent's log, `perdure/audit`: `operation_started` is written before anything is done, so what was done without a trace is nothing;
`operation_completed` or `operation_failed` after it. What began and did not end stays in the agent's state.
"""

from __future__ import annotations

import getpass
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.client.approval_rules import OPERATIONS, TEXT_LENGTH_MAX, Approval, Level, approved, digest_of, is_looser, needed, usable
from perdure.client.audit import AUDIT, AuditEntry, AuditTrail
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import Document
from perdure.errors import ApprovalRequired, Conflict, Denied, InvalidInput, LimitExceeded, NotFound, Unavailable
from perdure.identifiers import uuid7
from perdure.projections.reader import StateReader
from perdure.recovery.journal import SYSTEM_TENANT

__all__ = ["APPROVAL_S_DEFAULT", "AUDIT", "Approvals", "AuditEntry", "Passage", "acting"]

APPROVAL_S_DEFAULT: Final = 24 * 3600.0
"""How long after it was asked for an approval may be given and used."""
SCOPE: Final = "approvals"
_POLICY_SCOPE: Final = "approval-policy"
_POLICY: Final = "levels"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Approval).decode
_decode_policy = msgspec.msgpack.Decoder(dict[str, Level]).decode


def acting(actor: str | None = None) -> str:
    """Who acts: who is named, else PERDURE_ACTOR, else the user of this machine. Raises InvalidInput for what is no name."""
    name = actor or os.environ.get("PERDURE_ACTOR") or getpass.getuser()
    if len(name) > TEXT_LENGTH_MAX or not name.strip() or not name.isprintable():
        raise InvalidInput(f"actor {name!r:.80} is no name", hint=f"1 to {TEXT_LENGTH_MAX} printable characters")
    return name.strip()


class Passage:
    """An operation that may be done now. outcome: put in what shall stand in the audit trail."""

    def __init__(self, id: str, dry_run: bool) -> None:
        self.id = id
        self.dry_run = dry_run
        self.outcome: dict[str, Any] = {}


class Approvals:
    """Approvals, the policy and the audit trail of one log."""

    def __init__(self, log: EventLog, reader: StateReader) -> None:
        self._store = log.store
        self._trail = AuditTrail(log, reader)

    # --- doing ---
    @asynccontextmanager
    async def guard(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        actor: str | None = None,
        yes: bool = False,
        approval: str | None = None,
        dry_run: bool | None = None,
    ) -> AsyncIterator[Passage]:
        """Do the operation within. arguments: plain values, all that decides what it does; an approval holds for exactly these.

        A dry run needs nothing and leaves no trace (None: this operation has none). Raises InvalidInput without a yes where one is needed,
        ApprovalRequired (with the id of what was asked for) where somebody else must approve, Denied for an approval that does not hold.
        """
        digest = digest_of(operation, arguments)
        level = needed(operation, await self.policy())
        if dry_run:
            yield Passage("", True)
            return
        if operation == "events.compact" and arguments.get("tenant") == SYSTEM_TENANT:
            raise Denied("the journal and the audit trail stay whole", tenant=SYSTEM_TENANT)
        who = acting(actor)
        if level == "yes" and not yes and approval is None:
            look = "" if dry_run is None else ", or --dry-run to see what it does"
            raise InvalidInput(f"{operation} takes away {OPERATIONS[operation].takes}", hint=f"add --yes to do it{look}")
        told: dict[str, Any] = {"operation": operation, "arguments": dict(arguments), "actor": who}
        if approval is not None:
            used = await self._use(approval, operation, digest, who)
            told |= {"approval": approval, "approved_by": used.decided_by}
        elif level == "approval":
            raise await self._ask(operation, arguments, digest, who)
        passage = Passage(uuid7().hex, False)
        await self._trail.started(passage.id, told)
        try:
            yield passage
        except BaseException as problem:
            words = f"{type(problem).__name__}: {problem}"[: limits.AUDIT_TEXT_LENGTH_MAX]
            with suppress(Unavailable):  # it then stays among those that have not ended
                await self._trail.ended(passage.id, "failed", {"operation": operation, "actor": who, **passage.outcome, "problem": words})
            raise
        await self._trail.ended(passage.id, "completed", {"operation": operation, "actor": who, **passage.outcome})

    # --- approvals ---
    async def pending(self, *, all: bool = False) -> list[Approval]:
        """Those that are open or approved and can still be used, the oldest first; all: those that are over, too."""
        now_us = _now_us()
        found = sorted([_decode(each.value) for each in await self._store.list_documents(SCOPE)], key=lambda each: each.asked_us)
        return [each for each in found if all or (each.state in ("open", "approved") and each.expires_us > now_us)]

    async def approve(self, id: str, *, actor: str | None = None, deny: bool = False, reason: str = "") -> Approval:
        """Let somebody else's operation through, or deny it. Raises NotFound, Denied (one's own, expired, decided already)."""
        who = acting(actor)
        if len(reason) > TEXT_LENGTH_MAX:
            raise InvalidInput(f"the reason has {len(reason)} characters", hint=f"at most {TEXT_LENGTH_MAX}")
        document = await self._get(id)
        try:
            decided = approved(_decode(document.value), who, _now_us(), deny=deny, reason=reason)
        except Denied as problem:
            await self._refused(id, who, problem)
            raise
        await self._put(decided, document)
        await self._trail.tell(f"approval_{decided.state}", id, {"operation": decided.operation, "actor": who, "reason": reason})
        return decided

    async def policy(self) -> dict[str, Level]:
        """The operations that need something else than by default."""
        document = await self._store.get_document(_POLICY_SCOPE, _POLICY)
        return _decode_policy(document.value) if document else {}

    async def set_policy(
        self, operation: str, level: Level, *, actor: str | None = None, yes: bool = False, approval: str | None = None
    ) -> None:
        """What an operation needs from now on. Whoever asks for less needs an approval. Raises InvalidInput, ApprovalRequired, Conflict."""
        if level not in ("free", "yes", "approval") or operation == "approvals.loosen":
            raise InvalidInput(
                f"{operation} cannot need {level!r:.40}", hint="free, yes or approval, of any other operation than approvals.loosen"
            )
        if is_looser(operation, level, await self.policy()):
            async with self.guard("approvals.loosen", {"operation": operation, "level": level}, actor=actor, yes=yes, approval=approval):
                await self._write_policy(operation, level)
        else:
            await self._write_policy(operation, level)
            await self._trail.tell("approval_policy_set", operation, {"operation": operation, "level": level, "actor": acting(actor)})

    # --- audit ---
    async def audit(self, *, limit: int = 100, id: str | None = None) -> list[AuditEntry]:
        """The newest entries of the trail, newest first; id: of one operation or approval."""
        return await self._trail.entries(limit=limit, id=id)

    async def unfinished(self) -> dict[str, dict[str, Any]]:
        """Operations that began and have not ended, by id: under way, or their process died."""
        return await self._trail.open()

    async def _ask(self, operation: str, arguments: Mapping[str, Any], digest: str, who: str) -> ApprovalRequired:
        """The error that names what was asked for: once, however often it is tried."""
        now_us = _now_us()
        for each in await self.pending():
            if (each.operation, each.digest, each.asked_by) == (operation, digest, who):
                return _required(each)
        await self._forget_old(now_us)
        asked = Approval(secrets.token_hex(8), operation, dict(arguments), digest, who, now_us, now_us + round(APPROVAL_S_DEFAULT * 1e6))
        await self._put(asked, None)
        await self._trail.tell("approval_asked", asked.id, {"operation": operation, "arguments": asked.arguments, "actor": who})
        return _required(asked)

    async def _use(self, id: str, operation: str, digest: str, who: str) -> Approval:
        """Use an approval up. Raises Denied; an attempt to misuse one is told in the trail."""
        try:
            document = await self._get(id)
            used = usable(_decode(document.value), operation, digest, who, _now_us())
            await self._put(used, document)
        except (Denied, NotFound, Conflict) as problem:
            await self._refused(id, who, problem, operation)
            raise
        return used

    async def _refused(self, id: str, who: str, problem: Denied | NotFound | Conflict, operation: str = "") -> None:
        data = {"operation": operation, "actor": who, "problem": problem.message[: limits.AUDIT_TEXT_LENGTH_MAX]}
        await self._trail.tell("approval_refused", id[:TEXT_LENGTH_MAX], data)

    async def _get(self, id: str) -> Document:
        document = await self._store.get_document(SCOPE, id) if id and len(id) <= TEXT_LENGTH_MAX else None
        if document is None:
            raise NotFound(f"there is no approval {id!r:.80}", hint="`perdure approvals` lists them")
        return document

    async def _put(self, approval: Approval, before: Document | None) -> None:
        expected = 0 if before is None else before.revision
        if await self._store.put_document(SCOPE, approval.id, _encode(approval), expected=expected) is None:
            raise Conflict(
                f"somebody else decided about {approval.id}, or used it, at the same moment", hint="`perdure approvals --all` tells"
            )

    async def _forget_old(self, now_us: int) -> None:
        """What is over for long goes (the trail keeps it); too many open ones are refused."""
        every = await self.pending(all=True)
        for each in every:
            if now_us - each.expires_us > APPROVAL_S_DEFAULT * 1e6:
                await self._store.delete_document(SCOPE, each.id)
        if sum(each.state == "open" and each.expires_us > now_us for each in every) >= limits.APPROVALS_OPEN_MAX:
            raise LimitExceeded(f"{limits.APPROVALS_OPEN_MAX} approvals wait for a decision", hint="`perdure approve ID --deny` closes one")

    async def _write_policy(self, operation: str, level: Level) -> None:
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            document = await self._store.get_document(_POLICY_SCOPE, _POLICY)
            levels = (_decode_policy(document.value) if document else {}) | {operation: level}
            expected = document.revision if document else 0
            if await self._store.put_document(_POLICY_SCOPE, _POLICY, _encode(levels), expected=expected) is not None:
                return
        raise Conflict("others changed the policy every time", hint="try again")


def _required(asked: Approval) -> ApprovalRequired:
    hint = f"somebody else: perdure approve {asked.id}; then the same again with --approval {asked.id}"
    return ApprovalRequired(
        f"{asked.operation} needs the approval of another person", hint=hint, approval=asked.id, operation=asked.operation
    )


def _now_us() -> int:
    return time.time_ns() // 1_000
