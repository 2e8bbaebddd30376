"""Which events of an agent may go. Pure.

A log is compacted from its beginning: the versions below a *floor* go, all others stay without a hole. What holds before and after:

1. The state at every version from floor - 1 on can be had: a sound snapshot stands at floor - 1 exactly, the *anchor*, whose chain hash the
   first kept event follows.
2. The newest three sound snapshots and all events after the oldest of them stay. Where there are fewer, they are made first, or nothing goes.
3. What a fork or a running restore needs can be had as before: either from the floor on, or from a snapshot at that very version.
4. A floor never goes down.

Snapshots below the floor need no events any more; they are read and verified before the events go.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Literal

import msgspec

from perdure.errors import InvalidInput
from perdure.limits import CHECKPOINTS_PER_COMPACTION_MAX, SNAPSHOTS_NEWEST_MIN
from perdure.snapshots.retention import S, base_of, sound

__all__ = ["CompactionPlan", "Strategy", "plan_compaction"]

Strategy = Literal["snapshot", "merge", "delete"]
"""snapshot: a checkpoint is made where the kept events begin. merge: besides, every so many versions become one step, whose end is a
checkpoint. delete: nothing is made; events go as far as the snapshots that stand allow."""

FEW_SNAPSHOTS: Final = "fewer than three sound snapshots"
NEWEST: Final = "the newest three snapshots"
HELD: Final = "a fork or a restore"
NO_ANCHOR: Final = "no snapshot stands where the kept events would begin"


class CompactionPlan(msgspec.Struct, frozen=True):
    """floor: the first version that stays (the old one: nothing goes). checkpoints: versions to make checkpoints of before, ascending.
    verify: versions whose snapshots must be whole before anything goes. limited_by: why the floor is not what was asked for, or ''."""

    old_floor: int
    floor: int
    checkpoints: tuple[int, ...] = ()
    verify: tuple[int, ...] = ()
    limited_by: str = ""

    @property
    def events(self) -> int:
        """How many events go."""
        return self.floor - self.old_floor


def plan_compaction(
    snapshots: Sequence[S],
    *,
    floor: int,
    head: int,
    wanted: int,
    strategy: Strategy,
    held_versions: Collection[int] = (),
    step_versions: int | None = None,
) -> CompactionPlan:
    """Plan for one agent whose log goes from `floor` to `head` and shall begin at `wanted`. step_versions: of `merge`, how many versions one
    step has. Where there are too few snapshots, all strategies but delete make what is missing."""
    if (strategy == "merge") != (step_versions is not None):
        raise InvalidInput("step_versions belongs to the strategy merge", hint="give it with merge, and only there")
    if step_versions is not None and step_versions < 1:
        raise InvalidInput(f"a step of {step_versions} versions")
    good = sound(snapshots)
    nothing = CompactionPlan(floor, floor)
    if wanted <= floor:
        return nothing
    if len(good) < SNAPSHOTS_NEWEST_MIN and strategy == "delete":
        return msgspec.structs.replace(nothing, limited_by=FEW_SNAPSHOTS)
    few = len(good) < SNAPSHOTS_NEWEST_MIN
    highest = head - SNAPSHOTS_NEWEST_MIN + 2 if few else good[SNAPSHOTS_NEWEST_MIN - 1].version + 1
    target, limited_by = (highest, NEWEST) if wanted > highest else (wanted, "")
    if target <= floor:
        return msgspec.structs.replace(nothing, limited_by=limited_by)
    reachable = {version for version in held_versions if version < target and _reachable(good, version, floor)}
    if strategy == "delete":
        return _by_what_stands(good, floor, target, reachable, limited_by)
    extra = {(target - 1 + head) // 2, head} if few else set()
    made = _to_make(good, floor, target, reachable | extra, step_versions)
    return _plan(good, floor, target, made, limited_by)


def _reachable(good: Sequence[S], version: int, floor: int) -> bool:
    return floor == 1 or version >= floor - 1 or base_of(good, version, floor) is not None


def _to_make(good: Sequence[S], floor: int, target: int, held: Collection[int], step_versions: int | None) -> list[int]:
    wanted = {target - 1, *(version for version in held if version > 0)}
    if step_versions is not None:
        first = (floor - 1) // step_versions + 1
        wanted |= {step * step_versions for step in range(first, (target - 1) // step_versions + 1)}
    made = sorted(wanted - {snapshot.version for snapshot in good})
    if len(made) > CHECKPOINTS_PER_COMPACTION_MAX:
        raise InvalidInput(
            f"{len(made)} checkpoints in one compaction, the limit is {CHECKPOINTS_PER_COMPACTION_MAX}", hint="take larger steps"
        )
    return made


def _by_what_stands(good: Sequence[S], floor: int, target: int, held: Collection[int], limited_by: str) -> CompactionPlan:
    """The highest floor at or below the target whose anchor stands and above which every held version stays within reach."""
    exact = {snapshot.version for snapshot in good}
    alone = [version for version in held if version not in exact and version > 0]
    for snapshot in good:
        anchor = snapshot.version
        if not floor <= anchor < target:
            continue
        if all(version >= anchor for version in alone):
            reason = limited_by if anchor == target - 1 else (limited_by or NO_ANCHOR)
            return _plan(good, floor, anchor + 1, [], reason)
        limited_by = HELD
    return CompactionPlan(floor, floor, limited_by=limited_by or NO_ANCHOR)


def _plan(good: Sequence[S], old_floor: int, floor: int, made: list[int], limited_by: str) -> CompactionPlan:
    newest = set(sorted({*made, *(snapshot.version for snapshot in good)})[-SNAPSHOTS_NEWEST_MIN:])
    below = {snapshot.version for snapshot in good if snapshot.version < floor}
    return CompactionPlan(old_floor, floor, tuple(made), tuple(sorted(newest | below | set(made))), limited_by)
