"""Which snapshots of an agent stay. Pure.

Whatever the policy says:

1. The newest three sound snapshots stay: a damaged newest one then costs time, never data.
2. Permanent and critical ones and checkpoints stay until somebody deletes them by name.
3. One that was promised until a time stays until then.
4. What the log can no longer give by itself stays: the snapshot that the kept events begin after (the anchor), and for every version that
   a fork or a running restore needs, the snapshot to come from.

The rest stays as long as the policy wants it: for some time after it was made, and one for each of the last days.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from perdure.engine.log.snapshot_rows import CHECKPOINT
from perdure.errors import InvalidInput
from perdure.limits import SNAPSHOTS_NEWEST_MIN

__all__ = ["Decision", "RetentionPolicy", "Snapshotted", "base_of", "decide", "newest_sound", "sound"]

DAY_US: Final = 86_400_000_000


class Snapshotted(Protocol):
    """What the rules need to know of a snapshot (a `SnapshotRow`). Times are unix microseconds; expires_us 0: no time was promised."""

    @property
    def version(self) -> int: ...
    @property
    def created_us(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def expires_us(self) -> int: ...
    @property
    def permanent(self) -> bool: ...
    @property
    def critical(self) -> bool: ...
    @property
    def damage(self) -> str: ...


S = TypeVar("S", bound=Snapshotted)


class RetentionPolicy(msgspec.Struct, frozen=True):
    """What stays beyond the rules. newest: so many of the newest (at least three). keep_s: all that are younger. days: one for each of the last
    so many days that have one (UTC)."""

    newest: int = SNAPSHOTS_NEWEST_MIN
    keep_s: float = 0.0
    days: int = 7

    def __post_init__(self) -> None:
        if self.newest < SNAPSHOTS_NEWEST_MIN:
            raise InvalidInput(f"{self.newest} newest snapshots", hint=f"at least {SNAPSHOTS_NEWEST_MIN} stay")
        if self.keep_s < 0 or self.days < 0:
            raise InvalidInput("a retention time below zero")


class Decision(Generic[S]):
    """stay: each with the reason, newest first. go: may be deleted now, newest first."""

    def __init__(self, stay: list[tuple[S, str]], go: list[S]) -> None:
        self.stay = stay
        self.go = go


def sound(snapshots: Iterable[S]) -> list[S]:
    """Those that are not known to be damaged, newest version first. The registry holds at most one of a version."""
    return sorted((snapshot for snapshot in snapshots if not snapshot.damage), key=lambda snapshot: -snapshot.version)


def newest_sound(snapshots: Iterable[S], count: int = SNAPSHOTS_NEWEST_MIN) -> list[S]:
    """The newest sound ones, at most `count`."""
    return sound(snapshots)[:count]


def base_of(snapshots: Iterable[S], version: int, floor: int = 1) -> S | None:
    """The snapshot that the state at `version` comes from when the log begins at version `floor`: the newest sound one at or before it whose
    following events are all there. None: the state comes from the log alone, or cannot be had."""
    for snapshot in sound(snapshots):
        if snapshot.version <= version:
            return snapshot if snapshot.version == version or snapshot.version + 1 >= floor else None
    return None


def decide(
    snapshots: Sequence[S], policy: RetentionPolicy, *, now_us: int, floor: int = 1, held_versions: Collection[int] = ()
) -> Decision[S]:
    """What stays and what may go, of one agent's snapshots. floor: the first version that the log has. held_versions: whose states forks
    and running restores need."""
    reasons: dict[int, str] = {}
    for reason, chosen in _rules(snapshots, policy, now_us, floor, held_versions):
        for snapshot in chosen:
            reasons.setdefault(id(snapshot), reason)
    ordered = sorted(snapshots, key=lambda snapshot: (-snapshot.version, -snapshot.created_us))
    stay = [(snapshot, reasons[id(snapshot)]) for snapshot in ordered if id(snapshot) in reasons]
    return Decision(stay, [snapshot for snapshot in ordered if id(snapshot) not in reasons])


def _rules(
    snapshots: Sequence[S], policy: RetentionPolicy, now_us: int, floor: int, held_versions: Collection[int]
) -> Iterable[tuple[str, list[S]]]:
    good = sound(snapshots)
    yield "newest", good[: policy.newest]
    yield "permanent", [snapshot for snapshot in snapshots if snapshot.permanent]
    yield "critical", [snapshot for snapshot in snapshots if snapshot.critical]
    yield CHECKPOINT, [snapshot for snapshot in snapshots if snapshot.kind == CHECKPOINT]
    if floor > 1:
        yield "anchor", [snapshot for snapshot in good if snapshot.version == floor - 1]
    yield "held", [base for version in held_versions if (base := base_of(good, version, floor)) is not None]
    yield "promised", [snapshot for snapshot in snapshots if snapshot.expires_us > now_us]
    unpromised = [snapshot for snapshot in good if not snapshot.expires_us]
    yield "young", [snapshot for snapshot in unpromised if now_us - snapshot.created_us < policy.keep_s * 1e6]
    yield "daily", _daily(unpromised, policy.days)


def _daily(good: Sequence[S], days: int) -> list[S]:
    """The newest of each of the last days that have one."""
    of_day: dict[int, S] = {}
    for snapshot in good:
        of_day.setdefault(snapshot.created_us // DAY_US, snapshot)
    return [of_day[day] for day in sorted(of_day, reverse=True)[:days]]
