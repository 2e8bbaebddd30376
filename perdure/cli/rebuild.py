"""perdure rebuild"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from perdure.cli.chosen import Parallel, chosen, for_each
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, count, emit
from perdure.engine.log.contract import AgentName

__all__ = ["rebuild"]


async def rebuild(
    *agents: str,
    every: Annotated[bool, Parameter(name="--all", help="Every agent of the tenant.", negative=())] = False,
    parallel: Parallel = 8,
    options: Options = DEFAULTS,
) -> int:
    """Put the states of agents into the cache anew, from snapshots and the log. Reads go on meanwhile, served from the log; an interrupted
    rebuild leaves nothing wrong behind."""
    async with session(options) as engine:

        async def one(name: AgentName) -> int:
            return await engine.recovery.rebuild_state(name)

        with Progress("rebuild", quiet=options.json, unit="agents") as progress:
            done = await for_each(chosen(engine, options.tenant_name, agents, every=every), one, parallel=parallel, progress=progress)
    facts = {"rebuilt": len(done.results), "failures": done.failures, "failed": done.failed}
    lines = [f"{count(len(done.results))} agents are in the cache anew", *(f"{agent}: {problem}" for agent, problem in done.failed.items())]
    emit(facts, as_json=options.json, text="\n".join(lines))
    return done.code
