"""Do the snapshots hold? Each is read by the independent checker and compared with the fold of the log."""

from __future__ import annotations

from perdure import limits
from perdure.client.verify_problems import Problems
from perdure.engine.digest import digest
from perdure.engine.log.floor_rows import NO_FLOOR
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import SnapshotRow
from perdure.engine.replay import Folded, fold_log
from perdure.errors import Denied, DictionaryNotFound, IntegrityError
from perdure.snapshots.independent import check_independently
from perdure.snapshots.loader import DAMAGE
from perdure.snapshots.shelf import SnapshotShelf

__all__ = ["SnapshotsReport", "verify_snapshots_of"]


class SnapshotsReport(Problems):
    """snapshots, bytes: read. replayed: of these, compared with the fold of the log. marked: known to be damaged, not read again. problems:
    what was found now, of those that are not marked."""

    snapshots: int = 0
    bytes: int = 0
    replayed: int = 0
    marked: int = 0

    def note_of(self, row: SnapshotRow, problem: str) -> None:
        """Keep a problem of a snapshot."""
        self.note(f"{row.tenant}/{row.agent} snapshot {row.id} at version {row.version}: {problem}")


async def verify_snapshots_of(log: EventLog, shelf: SnapshotShelf, record: AgentRecord, report: SnapshotsReport) -> None:
    """Check all snapshots of an agent; what is damaged is marked, and the report grows. Raises Unavailable where the store or the log is away.

    Oldest first, so that one walk through the log gives the states of all versions.
    """
    rows = await log.store.snapshots(record, limit=limits.SNAPSHOTS_PER_AGENT_MAX)
    good = sorted((row for row in rows if not row.damage), key=lambda row: row.version)
    report.marked += len(rows) - len(good)
    (floor,) = await log.store.floors([record]) if good else (NO_FLOOR,)
    state: Folded | None = None
    for row in good:
        report.snapshots += 1
        try:
            found = await _check(log, shelf, record, row, report)
            if floor == NO_FLOOR:
                state = await _replay(log, record, row, state, report)
                if state is not None and digest(state.document) != found:
                    raise IntegrityError("its state is not the one that the log gives")
        except DAMAGE as problem:
            await shelf.loader.report(row, problem)
            report.note_of(row, problem.message)
        except (Denied, DictionaryNotFound) as problem:
            report.note_of(row, problem.message)


async def _replay(log: EventLog, record: AgentRecord, row: SnapshotRow, state: Folded | None, report: SnapshotsReport) -> Folded | None:
    """The state at the row's version, from the one before it; None: the log is broken, which is not the snapshot's fault."""
    try:
        state = await fold_log(log.store, log.vault, record, start=state, to_version=row.version)
    except IntegrityError as problem:
        report.note_of(row, f"the log does not give its state: {problem.message}")
        return None
    report.replayed += 1
    return state


async def _check(log: EventLog, shelf: SnapshotShelf, record: AgentRecord, row: SnapshotRow, report: SnapshotsReport) -> bytes:
    """The digest of a snapshot's state. Raises IntegrityError for one that does not hold."""
    await shelf.loader.check_log(record, row)
    checked = await check_independently(shelf.contents, log.vault, row)
    report.bytes += checked.bytes_read
    if checked.problems or checked.document is None:
        raise IntegrityError("; ".join(f"{problem.where}: {problem.what}" for problem in checked.problems))
    if checked.state_digest != row.state_digest:
        raise IntegrityError("its digest is not the registered one")
    return digest(checked.document)
