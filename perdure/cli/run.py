"""perdure run | relay | project: the processes between log and cache"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain
from perdure.cli.render import excerpt

__all__ = ["project", "relay", "run", "stop_signals"]

Drained = Annotated[bool, Parameter(help="End when everything that is in the log now has arrived.", negative=())]


async def run(*, until_drained: Drained = False, options: Options = DEFAULTS) -> None:
    """Relay, projector and, where there is a store, snapshotter in one process, until it is told to end (Ctrl-C, SIGTERM)."""
    await _work(options, relay=True, projector=True, until_drained=until_drained)


async def relay(*, until_drained: Drained = False, options: Options = DEFAULTS) -> None:
    """Publish the log to the bus; several relays share the partitions."""
    await _work(options, relay=True, projector=False, until_drained=until_drained)


async def project(*, until_drained: Drained = False, options: Options = DEFAULTS) -> None:
    """Keep the cache up to date from the bus; several projectors share the partitions."""
    await _work(options, relay=False, projector=True, until_drained=until_drained)


async def _work(options: Options, *, relay: bool, projector: bool, until_drained: bool) -> None:
    async with session(options, create=True) as engine:
        with stop_signals() as stop:
            if not until_drained:
                print("running; Ctrl-C ends it", file=sys.stderr, flush=True)
            await engine.run(relay=relay, projector=projector, until_drained=until_drained, stop=stop)
        lags = await engine.lags()
    emit({"drained": until_drained, "lags": plain(lags)}, as_json=options.json, text=f"done; lags {excerpt(lags)}")


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
