"""Where an agent stands at both ends, and where its events begin: with it go its floor and the snapshots that stand for what was removed."""

from __future__ import annotations

from perdure.engine.log.floor_rows import Floor
from perdure.engine.log.fork_rows import has_own_floor
from perdure.engine.log.records import AgentRecord, EventFilter
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.errors import AlreadyExists, ConfigurationError
from perdure.limits import COMPACTION_PAGE_EVENTS, SNAPSHOTS_NEWEST_MIN
from perdure.migration.transfer.sides import Side
from perdure.snapshots.order import SnapshotOrder

__all__ = ["carry_floor", "carry_snapshots", "check_same", "standing_of"]

ROWS_LOOKED_AT = 100


async def standing_of(side: Side, row: AgentRecord) -> tuple[int, bytes]:
    """The version that an agent's next event follows, and the chain hash there: its newest, or the one before its floor."""
    (head,), (floor,) = await side.store.heads([row]), await side.store.floors([row])
    return (head.version, head.chain) if head.version >= floor.version - 1 else (floor.version - 1, floor.chain)


async def check_same(source: Side, row: AgentRecord, version: int, chain: bytes) -> None:
    """What the target has must be the beginning of what the source has. Raises AlreadyExists."""
    (floor,) = await source.store.floors([row])
    if version == floor.version - 1:
        same = floor.chain == chain
    else:
        found = await source.store.read_agent(row, EventFilter(from_version=version, to_version=version), 1)
        same = bool(found) and found[0].chain == chain
    if not same:
        raise AlreadyExists(f"the target has another history of agent {row.agent!r}", tenant=row.tenant, agent=row.agent, version=version)


async def carry_floor(source: Side, target: Side, row: AgentRecord, heir: AgentRecord, floor: Floor) -> bool:
    """Let the agent's events begin at the target where they begin at the source (at its floor), before the first is put in; whether any were removed.

    What the target has of it is kept where the source still has what follows; else it goes, as it did at the source, once newer events stand. Raises
    ConfigurationError where an end has no store of snapshots."""
    if heir.parent is not None and not has_own_floor(row, floor):
        (standing,) = await target.store.floors([heir])  # of those that it goes on from, who have it as they are there
        return standing.version > 1
    if floor.version == 1:
        return False
    (standing,) = await target.store.floors([heir])
    (head,) = await target.store.heads([heir])
    if source.shelf is None or target.shelf is None:
        message = "the agent's first events were removed, and an engine has no store for the snapshots that stand for them"
        raise ConfigurationError(message, hint="set PERDURE_STORE at both ends", tenant=row.tenant, agent=row.agent)
    if standing.version < floor.version and not head.version >= floor.version - 1 > 0:
        newest = await target.store.read_agent(heir, EventFilter(), 1, descending=True) if head.version else []
        # Readers of the partition are told of what goes now; where nothing was there, it has no hole.
        here = Floor(floor.version, floor.chain, floor.epoch, floor.time_us, newest[0].offset if newest else 0)
        await target.store.load_floor(heir, here, await source.store.removed_ids(row))
        standing = here
    return standing.version > 1


async def carry_snapshots(source: Side, target: Side, row: AgentRecord, heir: AgentRecord) -> int:
    """Make the snapshots that the floor needs at the target, from the source's, sealed with the target's keys; how many were made. What stood
    before the floor is removed, now that it is not the newest of its partition any more: no offset is given twice."""
    if source.shelf is None or target.shelf is None:
        return 0
    (floor,) = await target.store.floors([heir])
    (head,) = await target.store.heads([heir])
    while has_own_floor(heir, floor) and head.version >= floor.version and await target.store.remove_events(heir, COMPACTION_PAGE_EVENTS):
        pass
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
