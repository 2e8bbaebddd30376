"""The steps of a migration at which its processes can be stopped, killed or looked at (`perdure.engine.steps`). One place for all names.

Who reaches which: the coordinator is whoever calls `execute_migration`, the target and the source are hosts, a settler is whoever finishes or
aborts a migration whose processes are gone.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COORDINATOR", "SETTLER", "SOURCE", "TARGET"]

COORDINATOR: Final = (
    "migration.coordinator.told",  # the target was told to expect it, the record is not there
    "migration.coordinator.recorded",  # the record is there
    "migration.coordinator.watched",  # the coordinator saw the end
)
TARGET: Final = (
    "migration.target.accepted",  # the target has taken the migration on
    "migration.target.copied",  # its copy is loaded, and not compared
    "migration.target.verified",  # its copy is what the source has
    "migration.target.flipping",  # the record says that the flip may happen from now on
    "migration.target.held",  # the source holds the agent
    "migration.target.fenced",  # nobody may append
    "migration.target.applied",  # the copy stands where the log does
    "migration.target.committing",  # just before the commit is sent
    "migration.target.committed",  # the log has given the agent to the target, which does not serve it yet
    "migration.target.serving",  # it serves, nobody was told
    "migration.target.told",  # the source knows
    "migration.target.journaled",  # the journal tells of the end, the record does not yet
    "migration.target.closed",  # all is over
)
SOURCE: Final = (
    "host.standing",  # the source was asked where the agent stands
    "host.holding",  # the source was asked to hold it
    "host.leaving",  # the source was told that it is gone
)
SETTLER: Final = (
    "migration.settler.deciding",  # the record is open and its processes are gone
    "migration.settler.decided",  # the log, or the record, says what happened
    "migration.settler.journaled",
    "migration.settler.closed",
)
