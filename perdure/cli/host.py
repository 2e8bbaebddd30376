"""perdure host"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from typing import Annotated, Final

from cyclopts import Parameter

from perdure.cli.failures import report
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit_line
from perdure.cli.run import stop_signals
from perdure.errors import MissingDependency, Unavailable
from perdure.processes import calm_collector

__all__ = ["host"]

END_LOST_S: Final = 1.0
"""How long a node that lost its lease may take to end in order."""


async def host(
    *,
    node: Annotated[str, Parameter(help="Name of this node; one process at a time has it.")],
    handler: Annotated[str, Parameter(help="package.module:function, (state, command) -> events.")],
    address: Annotated[str, Parameter(help="Address to listen on; there is no access control, keep it on this machine.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0: a free one.")] = 0,
    agents_max: Annotated[int, Parameter(help="How many agents it takes.")] = 10_000,
    lease_s: Annotated[float, Parameter(help="For how long it is trusted without a sign of life.")] = 2.5,
    options: Options = DEFAULTS,
) -> None:
    """A node: owns agents, applies commands to them, and serves them over HTTP until it is stopped (Ctrl-C, SIGTERM)."""
    try:
        from perdure.recovery.http import bind, serving
    except ImportError as problem:
        raise MissingDependency(f"{problem.name} is not installed", hint="pip install 'perdure[server]'") from problem
    from perdure.recovery.handlers import load_handler

    function = load_handler(handler)
    by_force = threading.Timer(END_LOST_S, _end, (node, options.json))
    by_force.daemon = True
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(by_force.cancel)
        engine = await stack.enter_async_context(session(options, create=True))
        calm_collector()
        listening = bind(address, port)
        url = f"http://{address}:{listening.getsockname()[1]}"
        serving_host = engine.recovery.host(node, function, address=url, agents_max=agents_max, lease_s=lease_s)
        async with serving_host, serving(serving_host, listening):
            emit_line({"node": node, "address": url}, as_json=options.json, text=f"node {node} serves on {url}; Ctrl-C ends it")
            with stop_signals() as stop:
                lost = await _first(stop.wait(), serving_host.wait_lost())
                if lost:
                    by_force.start()
        if lost:
            raise _lost(node)


def _lost(node: str) -> Unavailable:
    return Unavailable(f"node {node!r} lost its lease", hint="the log was away for too long, or the process stood still; start it again")


def _end(node: str, as_json: bool) -> None:
    """As a node that is killed: the log may say nothing for long, and who cannot ask it must not seem to serve."""
    exit_code = report(_lost(node), as_json=as_json)
    sys.stderr.flush()
    os._exit(exit_code)


async def _first(stopped: object, lost: object) -> bool:
    """Whether the second came first."""
    tasks = [asyncio.ensure_future(work) for work in (stopped, lost)]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return not tasks[1].cancelled()
