"""Agents whose first events were removed: where their events begin goes with them, and the snapshots that stand for what is gone."""

from __future__ import annotations

from perdure.engine.log.contract import AgentRecord
from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.errors import ConfigurationError, Conflict
from perdure.limits import SNAPSHOTS_NEWEST_MIN
from perdure.migration.transfer.sides import Side
from perdure.snapshots.order import SnapshotOrder

__all__ = ["carry_floor", "carry_snapshots"]

ROWS_LOOKED_AT = 100


async def carry_floor(source: Side, target: Side, row: AgentRecord, heir: AgentRecord) -> bool:
    """Let the agent's events begin at the target where they begin at the source, before the first is put in; whether any were removed.

    Raises ConfigurationError where an end has no store of snapshots, Conflict where the target has an older part of the history and the events
    between were removed."""
    (floor,) = await source.store.floors([row])
    if floor.version == 1:
        return False
    (standing,) = await target.store.floors([heir])
    (head,) = await target.store.heads([heir])
    if source.shelf is None or target.shelf is None:
        message = "the agent's first events were removed, and an engine has no store for the snapshots that stand for them"
        raise ConfigurationError(message, hint="set PERDURE_STORE at both ends", tenant=row.tenant, agent=row.agent)
    if standing.version == floor.version or head.version >= floor.version - 1 > 0:
        return standing.version > 1
    if head.version:
        message = f"the target has versions up to {head.version}, and the source none before {floor.version}"
        raise Conflict(message, hint="erase what the target has of the agent", tenant=row.tenant, agent=row.agent)
    # At the target nothing was removed from the partition: its readers need not be told of a hole.
    here = Floor(floor.version, floor.chain, floor.epoch, floor.time_us, 0)
    await target.store.load_floor(heir, here, await source.store.removed_ids(row))
    return True


async def carry_snapshots(source: Side, target: Side, row: AgentRecord, heir: AgentRecord) -> int:
    """Make the snapshots that the floor needs at the target, from the source's, sealed with the target's keys; how many were made."""
    if source.shelf is None or target.shelf is None:
        return 0
    (floor,) = await target.store.floors([heir])
    (head,) = await target.store.heads([heir])
    there = {each.version for each in await target.store.snapshots(heir, limit=ROWS_LOOKED_AT, good=True)}
    good = [each for each in await source.store.snapshots(row, limit=ROWS_LOOKED_AT, good=True) if each.version <= head.version]
    wanted = {each.version: each for each in good[:SNAPSHOTS_NEWEST_MIN]}
    wanted.update({each.version: each for each in good if each.version == floor.version - 1})
    made = 0
    for version, each in sorted(wanted.items()):
        if version >= floor.version - 1 and version not in there:
            opened = await source.shelf.contents.read(each)
            await target.shelf.writer.keep(heir, opened.folded, _order(each))
            made += 1
    return made


def _order(row: SnapshotRow) -> SnapshotOrder:
    return SnapshotOrder(
        kind=row.kind,
        trigger=row.trigger,
        creator=row.creator,
        codec=row.codec,
        expires_us=row.expires_us,
        permanent=row.permanent,
        critical=row.critical,
    )
