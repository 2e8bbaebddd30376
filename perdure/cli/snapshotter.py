"""perdure snapshotter"""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import amount, count, emit, plain
from perdure.cli.run import stop_signals
from perdure.limits import REPLAY_BUDGET_BYTES, REPLAY_BUDGET_EVENTS

__all__ = ["snapshotter"]


async def snapshotter(
    *,
    budget_events: int = REPLAY_BUDGET_EVENTS,
    budget_bytes: int = REPLAY_BUDGET_BYTES,
    every_versions: int | None = None,
    every_bytes: int | None = None,
    parallel: int = 4,
    until_drained: Annotated[bool, Parameter(help="End when everything that is in the log now was looked at.", negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """Make snapshots of agents that are due, until it is stopped (Ctrl-C, SIGTERM); several share the partitions.

    Parameters
    ----------
    budget_events
        An agent is due when a load would have to replay so many events; more for large states.
    budget_bytes
        Or so many bytes of events.
    every_versions
        Besides, every so many versions.
    every_bytes
        Besides, every so many bytes of events.
    parallel
        Agents that are worked on at once.
    """
    from perdure.snapshots.cadence import Cadence

    cadence = Cadence(budget_events, budget_bytes, every_versions, every_bytes)
    async with session(options) as engine:
        working = engine.upkeep.snapshotter(cadence, parallel=parallel)
        with stop_signals() as stop:
            if not until_drained:
                print("running; Ctrl-C ends it", file=sys.stderr, flush=True)
            await working.run(stop, until_drained=until_drained)
    status = working.status
    text = f"{amount(status.made, 'snapshot')} made, {count(status.failed)} failed" + (f": {status.problem}" if status.failed else "")
    emit({"drained": until_drained, **plain(status)}, as_json=options.json, text=text)
