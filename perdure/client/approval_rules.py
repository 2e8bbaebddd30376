"""Which operations take something away, what each of them needs, and when an approval holds. Pure.

Invariant: an approval lets exactly one attempt of exactly one operation with exactly its arguments through, for the person who asked, given by
another one, before it expires.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from perdure.errors import Denied, InvalidInput

__all__ = ["OPERATIONS", "Approval", "Level", "Operation", "approved", "digest_of", "needed", "usable"]

Level = Literal["free", "yes", "approval"]
"""free: it is only recorded; yes: somebody says that they mean it; approval: another person approves it first."""
_LEVELS: Final = ("free", "yes", "approval")

TEXT_LENGTH_MAX: Final = 256
ARGUMENTS_BYTES_MAX: Final = 64 * 1024


class Operation(msgspec.Struct, frozen=True):
    """takes: what it takes away; level: what it needs unless the policy asks for more. permanent: nothing can bring it back."""

    takes: str
    level: Level = "yes"
    permanent: bool = True


OPERATIONS: Final[Mapping[str, Operation]] = {
    "events.compact": Operation("agents' first events; their states stay readable from there on"),
    "snapshots.delete": Operation("snapshots that are named"),
    "snapshots.clean": Operation("snapshots that no rule keeps"),
    "snapshots.sweep": Operation("objects of the store that no snapshot names"),
    "backups.prune": Operation("old backups"),
    "transfers.erase": Operation("this engine's keys of agents that have moved to another one"),
    "log.repair": Operation("damaged rows of the log, for proved ones; copies that contradict it"),
    "agents.rollback": Operation("nothing of the history; the state goes back by an event", permanent=False),
    "cache.rebuild": Operation("cached states, for what the log says", level="free", permanent=False),
    "quarantine.resolve": Operation("the mark that an agent stands still, if it folds", level="free", permanent=False),
    "approvals.loosen": Operation("the need of an approval, or of a yes", level="approval", permanent=False),
}
"""By name. Restores of backups are none of them: they only ever write into an empty place."""


class Approval(msgspec.Struct, frozen=True):
    """What somebody asks for, and what became of it. Times are unix microseconds."""

    id: str
    operation: str
    arguments: dict[str, Any]
    digest: str
    asked_by: str
    asked_us: int
    expires_us: int
    state: Literal["open", "approved", "denied", "used"] = "open"
    decided_by: str = ""
    decided_us: int = 0
    reason: str = ""


def digest_of(operation: str, arguments: Mapping[str, Any]) -> str:
    """SHA-256 over the operation and its arguments in one order, hexadecimal. Raises InvalidInput for arguments that are too large."""
    value = msgspec.json.encode([operation, arguments], order="sorted")
    if len(value) > ARGUMENTS_BYTES_MAX:
        raise InvalidInput(
            f"the arguments of {operation} have {len(value)} bytes", hint=f"at most {ARGUMENTS_BYTES_MAX}: name fewer at once"
        )
    return sha256(value).hexdigest()


def needed(operation: str, policy: Mapping[str, Level]) -> Level:
    """What an operation needs: its own level, or the policy's. Raises InvalidInput for an unknown one."""
    known = OPERATIONS.get(operation)
    if known is None:
        raise InvalidInput(f"there is no guarded operation {operation!r:.80}", hint=", ".join(OPERATIONS))
    # What loosens the policy can never be loosened itself: else one person could, in two steps, do what takes two.
    return known.level if operation == "approvals.loosen" else policy.get(operation, known.level)


def is_looser(operation: str, level: Level, policy: Mapping[str, Level]) -> bool:
    """Whether a level asks for less than what holds now."""
    return _LEVELS.index(level) < _LEVELS.index(needed(operation, policy))


def approved(approval: Approval, actor: str, now_us: int, *, deny: bool = False, reason: str = "") -> Approval:
    """As it stands after somebody's decision. Raises Denied where it is not theirs to decide."""
    _must_be_alive(approval, now_us)
    if approval.state != "open":
        raise Denied(f"{approval.id} was {approval.state} already", reason=approval.state)
    if not deny and _same(actor, approval.asked_by):
        raise Denied(f"{actor} asked for {approval.id}: somebody else must approve it", reason="own")
    state: Literal["denied", "approved"] = "denied" if deny else "approved"
    return msgspec.structs.replace(approval, state=state, decided_by=actor, decided_us=now_us, reason=reason)


def usable(approval: Approval, operation: str, digest: str, actor: str, now_us: int) -> Approval:
    """As it stands once it was used. Raises Denied where it does not hold for this operation, these arguments, this person, now."""
    if approval.operation != operation or approval.digest != digest:
        raise Denied(
            f"{approval.id} is for another operation, or for other arguments", hint="`perdure approvals` shows which", reason="foreign"
        )
    _must_be_alive(approval, now_us)
    if approval.state != "approved":
        words = {"open": "was not approved yet", "used": "was used already", "denied": f"was denied by {approval.decided_by}"}[
            approval.state
        ]
        raise Denied(f"{approval.id} {words}", hint="an approval serves one attempt", reason=approval.state)
    if not _same(actor, approval.asked_by):
        raise Denied(f"{approval.id} was asked for by {approval.asked_by}, not by {actor}", reason="foreign")
    return msgspec.structs.replace(approval, state="used")


def _must_be_alive(approval: Approval, now_us: int) -> None:
    if now_us >= approval.expires_us:
        raise Denied(f"{approval.id} has expired", hint="ask again", reason="expired")


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
