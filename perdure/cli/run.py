"""perdure run | relay | project: the processes between log and cache"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import amount, emit, plain
from perdure.errors import ConfigurationError, InvalidInput
from perdure.processes import calm_collector

if TYPE_CHECKING:
    from perdure.projections.lag import PartitionLag

__all__ = ["project", "relay", "run", "stop_signals"]


class Beside(NamedTuple):
    """What runs beside relay and projector."""

    supervise: bool
    backup_to: str | None
    backup_every_s: float


Drained = Annotated[bool, Parameter(help="End when everything that is in the log now has arrived.", negative=())]


async def run(
    *,
    until_drained: Drained = False,
    supervise: Annotated[bool, Parameter(help="Watch over nodes: give the agents of a lost one to others.")] = True,
    backup_to: Annotated[str | None, Parameter(help="Take backups there: file:///FOLDER or s3://…", env_var="PERDURE_BACKUP")] = None,
    backup_every: Annotated[float, Parameter(help="Seconds between two backups.")] = 30.0,
    options: Options = DEFAULTS,
) -> None:
    """Relay, projector, supervisor and, where there is a store, snapshotter and backups in one process, until it is stopped (Ctrl-C,
    SIGTERM). If bus and cache are memory://, it neither relays nor projects: they live in the processes that open the log."""
    if backup_every <= 0:
        raise InvalidInput(f"--backup-every {backup_every:g}", hint="seconds, above 0")
    running = Beside(supervise and not until_drained, None if until_drained else backup_to, backup_every)
    shared = not (_is_memory(options, "bus") and _is_memory(options, "cache"))
    await _work(options, relay=shared, projector=shared, until_drained=until_drained, beside=running)


async def relay(*, until_drained: Drained = False, options: Options = DEFAULTS) -> None:
    """Publish the log to the bus; several relays share the partitions."""
    _check_bus(options)
    await _work(options, relay=True, projector=False, until_drained=until_drained)


async def project(*, until_drained: Drained = False, options: Options = DEFAULTS) -> None:
    """Keep the cache up to date from the bus; several projectors share the partitions."""
    _check_bus(options)
    await _work(options, relay=False, projector=True, until_drained=until_drained)


def _check_bus(options: Options) -> None:
    if _is_memory(options, "bus"):
        hint = "name Kafka by --bus or PERDURE_BUS; perdure run does all that an embedded log needs"
        raise ConfigurationError("the bus is memory://, which no other process reaches", hint=hint)


def _is_memory(options: Options, setting: str) -> bool:
    return str(getattr(options.settings(), setting).value).startswith("memory:")


async def _work(options: Options, *, relay: bool, projector: bool, until_drained: bool, beside: Beside | None = None) -> None:
    whole, beside = beside is not None, beside or Beside(False, None, 0)
    async with session(options, create=True) as engine:
        calm_collector()

        async def backups(stop: asyncio.Event) -> None:
            await engine.backups.keep_taking(str(beside.backup_to), beside.backup_every_s, stop, _tell)

        taking = None if beside.backup_to is None else backups
        with stop_signals() as stop:
            if not until_drained:
                print("running; Ctrl-C ends it", file=sys.stderr, flush=True)
            await engine.run(
                relay=relay,
                projector=projector,
                snapshotter=whole and engine.snapshots.base is not None,
                supervisor=beside.supervise,
                backup=taking,
                until_drained=until_drained,
                stop=stop,
            )
        lags = await engine.lags() if relay or projector else {}
    behind = f"; {_behind(lags['relay'])}" if lags else ""
    emit({"drained": until_drained, "lags": plain(lags)}, as_json=options.json, text=f"done{behind}")


def _behind(lags: list[PartitionLag]) -> str:
    events = sum(lag.lag_events for lag in lags)
    if not events:
        return "everything in the log is on the bus"
    return f"{amount(events, 'event')} of the log not on the bus yet, the oldest for {max(lag.lag_s for lag in lags):.0f} s"


def _tell(done: object) -> None:
    """Of backups only what went wrong is said; `perdure backup status` tells how fresh they are."""
    if isinstance(done, Exception):
        print(f"perdure: no backup was taken: {done}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set: what is in hand is finished, positions are kept, leases given back."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
