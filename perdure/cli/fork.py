"""perdure fork AGENT NEW_AGENT | fork list"""

from __future__ import annotations

from cyclopts import App

from perdure.cli.chosen import Actor
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain, table
from perdure.cli.times import parse_time
from perdure.client.approvals import acting
from perdure.engine.log.records import AgentName, rfc3339
from perdure.errors import InvalidInput

__all__ = ["app"]

app = App(name="fork", help="Create an agent that continues from another one's version, in constant time; or list an agent's forks.")


@app.default
async def fork(
    agent: str,
    new_agent: str,
    /,
    *,
    at_version: int | None = None,
    at_time: str | None = None,
    actor: Actor = None,
    reason: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Make a new agent that goes on from another one's version; their histories are one up to there.

    Parameters
    ----------
    agent
        Whose state.
    new_agent
        The new agent's id.
    at_version
        At this version [default: the newest].
    at_time
        At this moment: RFC 3339, a date, or how long ago (15m, 2h, 3d).
    reason
        Why; stands in the event.
    """
    if at_version is not None and at_time is not None:
        raise InvalidInput("--at-version and --at-time exclude each other")
    async with session(options) as engine:
        time = None if at_time is None else parse_time(at_time)
        name = AgentName(options.tenant_name, agent)
        done = await engine.recovery.fork(name, new_agent, version=at_version, time=time, actor=acting(actor), reason=reason)
    text = f"{done.target} goes on from version {done.version} of {done.agent}, with version {done.appended}"
    emit(plain(done), as_json=options.json, text=text)


@app.command(name="list")
async def list_(agent: str, /, *, after: str = "", limit: int = 100, options: Options = DEFAULTS) -> None:
    """An agent's forks, in order of their ids.

    Parameters
    ----------
    agent
        Which agent.
    after
        Begin after this id: the last of the page before.
    limit
        Length of the page.
    """
    async with session(options) as engine:
        forks = await engine.recovery.forks(AgentName(options.tenant_name, agent), after=after, limit=limit)
    cells = ((fork.agent, fork.version, rfc3339(fork.time), fork.actor, fork.reason) for fork in forks)
    text = table(("AGENT", "FROM VERSION", "TIME", "ACTOR", "REASON"), cells) if forks else "no forks"
    next_after = forks[-1].agent if len(forks) == limit else None
    emit({"agent": agent, "forks": plain(forks), "next_after": next_after}, as_json=options.json, text=text)
