"""perdure show"""

from __future__ import annotations

from typing import Literal

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain
from perdure.cli.render import pretty
from perdure.cli.times import parse_time
from perdure.engine.log.records import AgentName, rfc3339
from perdure.errors import InvalidInput

__all__ = ["show"]


async def show(
    agent: str,
    /,
    *,
    at_version: int | None = None,
    at_time: str | None = None,
    consistency: Literal["strong", "eventual"] = "strong",
    at_least: int | None = None,
    options: Options = DEFAULTS,
) -> None:
    """An agent's state: now, at a version, or at a time. The document goes to stdout.

    Parameters
    ----------
    agent
        The agent's id.
    at_version
        The state after this version.
    at_time
        The state at this time: RFC 3339, a date, or how long ago (15m, 2h, 3d).
    consistency
        strong: everything that is acknowledged; eventual: what the cache has.
    at_least
        Not older than this version.
    """
    if at_version is not None and at_time is not None:
        raise InvalidInput("--at-version and --at-time exclude each other")
    time = None if at_time is None else parse_time(at_time)
    async with session(options) as engine:
        handle = engine.agent(agent, tenant=options.tenant_name)
        state = await handle.state(at_version=at_version, at_time=time, consistency=consistency, at_least=at_least)
        origin = await engine.recovery.origin(AgentName(state.tenant, state.agent))
    head = f"# {state.tenant}/{state.agent} version {state.version}" + (f", {rfc3339(state.time)}" if state.time else "")
    if origin is not None:
        head += f"; goes on from version {origin.version} of {origin.agent}"
    facts = {**plain(state), "digest": state.digest.hex(), "forked_from": plain(origin)}
    emit(facts, as_json=options.json, text=f"{head}\n{pretty(state.document)}")
