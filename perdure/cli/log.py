"""perdure log"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit_line
from perdure.cli.render import event_fields, event_line
from perdure.cli.times import parse_time
from perdure.errors import InvalidInput

__all__ = ["log"]


async def log(
    agent: str,
    /,
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    from_version: int = 1,
    to_version: int | None = None,
    type: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    since: str | None = None,
    until: str | None = None,
    correlation_id: str | None = None,
    trace_id: str | None = None,
    limit: int | None = None,
    options: Options = DEFAULTS,
) -> None:
    """An agent's events, oldest first; with --json one object per line.

    Parameters
    ----------
    agent
        The agent's id.
    follow
        Stay, and print new events as they come.
    from_version
        First version.
    to_version
        Last version.
    type
        Only events of this type; may be repeated.
    since
        Not before this time: RFC 3339, a date, or how long ago (15m, 2h, 3d).
    until
        Not after this time.
    correlation_id
        Only events of this run.
    trace_id
        Only events of this trace.
    limit
        Stop after so many.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"--limit is {limit}, not a number from 1 on")
    printed = 0
    async with session(options) as engine:
        events = engine.agent(agent, tenant=options.tenant_name).events(
            from_version=from_version,
            to_version=to_version,
            follow=follow,
            types=type,
            since=None if since is None else parse_time(since),
            until=None if until is None else parse_time(until),
            correlation_id=correlation_id,
            trace_id=trace_id,
        )
        async for event in events:
            emit_line(event_fields(event), as_json=options.json, text=event_line(event))
            printed += 1
            if limit is not None and printed >= limit:
                break
