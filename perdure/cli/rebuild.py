"""perdure rebuild [AGENT… | --all | --every-tenant] | status | abort"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from perdure.cli.chosen import ApprovalId, Parallel, chosen, for_each
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, emit_line, plain
from perdure.client.rebuilds import RebuildStatus
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput
from perdure.projections.builds import Build

__all__ = ["app"]

app = App(name="rebuild", help="Put states into the cache anew while they are read: AGENT…, --all, --every-tenant; status, abort.")

WATCH_S: Final = 1.0
_INTEGRITY: Final = 5


@app.default
async def rebuild(
    *agents: str,
    every: Annotated[bool, Parameter(name="--all", help="Every agent of the tenant.", negative=())] = False,
    every_tenant: Annotated[bool, Parameter(help="Every agent of every tenant.", negative=())] = False,
    parallel: Parallel = 8,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> int:
    """Fold states anew, from snapshots and the log, beside those that are read; then these take their place, agent by agent, never an older
    one. One that was interrupted is gone on with; one that has been aborted leaves nothing behind."""
    if bool(agents) + every + every_tenant != 1:
        raise InvalidInput("which agents?", hint="name them, or --all for every agent of the tenant, or --every-tenant")
    if agents:
        return await _named(agents, parallel, options)
    tenant = None if every_tenant else options.tenant_name
    async with (
        session(options) as engine,
        engine.approvals.guard("cache.rebuild", {"tenant": tenant}, yes=True, approval=approval) as passage,
    ):
        with Progress("rebuild", quiet=options.json) as progress:
            build = await engine.rebuilds.run(tenant, parallel=parallel, progress=lambda build: progress(build.events_done, build.events))
        passage.outcome = {"build": build.number, "agents": build.agents_cut, "failures": build.failures}
    emit(_facts(build), as_json=options.json, text="\n".join([_line(build), *build.problems]))
    return _INTEGRITY if build.failures else 0


@app.command
async def status(
    *,
    watch: Annotated[bool, Parameter(help="Go on until it has ended.", negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """Progress, rate and remaining time of the newest rebuild."""
    async with session(options) as engine:
        while True:
            found = await engine.rebuilds.status()
            facts = {**_facts(found.build), "running": found.running, "eta_s": found.eta_s}
            emit_line(facts, as_json=options.json, text=_status_line(found))
            if not (watch and found.running):
                return
            await asyncio.sleep(WATCH_S)


@app.command
async def abort(*, options: Options = DEFAULTS) -> None:
    """Abort the running rebuild; reads have not been affected."""
    async with session(options) as engine:
        build = await engine.rebuilds.abort()
    emit(_facts(build), as_json=options.json, text=f"build {build.number} is aborted; what was read before goes on to be read")


async def _named(agents: tuple[str, ...], parallel: int, options: Options) -> int:
    async with session(options) as engine:
        number = await engine.rebuilds.number()

        async def one(name: AgentName) -> int:
            return await engine.rebuilds.agent(name, number)

        with Progress("rebuild", quiet=options.json, unit="agents") as progress:
            done = await for_each(chosen(engine, options.tenant_name, agents, every=False), one, parallel=parallel, progress=progress)
    facts = {"rebuilt": len(done.results), "failures": done.failures, "failed": done.failed}
    lines = [f"in the cache anew: {amount(len(done.results), 'agent')}", *(f"{agent}: {problem}" for agent, problem in done.failed.items())]
    emit(facts, as_json=options.json, text="\n".join(lines))
    return done.code


def _facts(build: Build) -> dict[str, Any]:
    return {"rebuilt": build.agents_cut - build.skipped, **plain(build)}


def _line(build: Build) -> str:
    words = f"build {build.number}: in the cache anew: {amount(build.agents_cut - build.skipped, 'agent')}"
    if build.skipped:
        words += f"; {count(build.skipped)} have no state or no key"
    return words + (f"; {count(build.failures)} could not be built" if build.failures else "")


def _status_line(found: RebuildStatus) -> str:
    build = found.build
    if build.phase == "none":
        return "there was no rebuild"
    words = f"build {build.number}: {build.phase}"
    if build.open:
        words += f", {count(build.events_done)} of {amount(build.events, 'event')}"
        words += f", {count(build.agents_cut)} of {amount(build.agents, 'agent')} cut over"
        words += f", {count(build.events_per_s)} events/s" if found.running else "; no process works on it, `perdure rebuild` goes on"
    return words + (f", about {found.eta_s:.0f} s left" if found.eta_s is not None else "")
