"""perdure cache status | warm | invalidate"""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.chosen import Parallel
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, plain, size
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput

__all__ = ["app"]

app = App(name="cache", help="The cache of current states: status, warm, invalidate.")

Every = Annotated[bool, Parameter(name="--all", help="Every agent of the tenant.", negative=())]


@app.command
async def status(*, options: Options = DEFAULTS) -> None:
    """What the cache holds altogether: entries, bytes, what had to go. How reads are served is told by each process (`engine.state_cache`)."""
    async with session(options) as engine:
        facts = await engine.cache.statistics()
    bound = "no bound" if facts.bytes_max is None else f"at most {size(facts.bytes_max)}"
    entries = "1 entry" if facts.entries == 1 else f"{count(facts.entries)} entries"
    text = f"{entries}, {size(facts.bytes)} ({bound}), {count(facts.evicted)} evicted, {count(facts.expired)} expired"
    emit(plain(facts), as_json=options.json, text=text)


@app.command
async def warm(*agents: str, every: Every = False, parallel: Parallel = 8, options: Options = DEFAULTS) -> None:
    """Fill the cache with missing states, and update those that are behind."""
    names = _names(agents, every, options)
    async with session(options) as engine:
        with Progress("warming", quiet=options.json, unit="agents") as progress:
            done = await engine.state_cache.warm(names, tenant=options.tenant_name, parallel=parallel, progress=progress)
    text = f"{amount(done.written, 'state')} put there, {count(done.fresh)} there already, {count(done.skipped)} without one"
    emit(plain(done), as_json=options.json, text=text)


@app.command
async def invalidate(*agents: str, every: Every = False, options: Options = DEFAULTS) -> None:
    """Drop these agents' cached states in every process; reads fold them again."""
    names = _names(agents, every, options)
    async with session(options) as engine:
        asked = await engine.state_cache.invalidate(names, tenant=options.tenant_name)
    emit({"invalidated": asked}, as_json=options.json, text=f"folded anew at the next read: {amount(asked, 'agent')}")


def _names(agents: tuple[str, ...], every: bool, options: Options) -> list[AgentName] | None:
    if bool(agents) == every:
        raise InvalidInput("which agents?", hint="name them, or --all for every agent of the tenant")
    return None if every else [AgentName(options.tenant_name, agent) for agent in agents]
