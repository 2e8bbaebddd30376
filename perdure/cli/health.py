"""perdure health"""

from __future__ import annotations

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain, table
from perdure.cli.times import parse_time
from perdure.engine.log.records import rfc3339

__all__ = ["health"]


async def health(agent: str, /, *, since: str | None = None, limit: int = 20, options: Options = DEFAULTS) -> None:
    """An agent's status, and its status changes and errors, newest first.

    Parameters
    ----------
    agent
        The agent's id.
    since
        Not before this time: RFC 3339, a date, or how long ago (15m, 2h, 3d) [default: 90 days ago].
    limit
        Length of the history.
    """
    async with session(options) as engine:
        name = engine.agent(agent, tenant=options.tenant_name).name
        now = await engine.health.now(name, consistency="strong")
        said = await engine.health.history(name, since=None if since is None else parse_time(since), limit=limit)
    silent = "no event yet" if now.silent_s is None else f"silent for {now.silent_s:.0f} s"
    head = f"{agent}: {now.status or 'no status'}, version {now.version}, {silent}" + (f", at work on {now.task}" if now.task else "")
    rows = [(rfc3339(entry.time), entry.version, entry.type, entry.status or "", entry.detail) for entry in said]
    text = f"{head}\n{table(('TIME', 'VERSION', 'EVENT', 'STATUS', 'DETAIL'), rows)}" if rows else head
    emit({**plain(now), "history": plain(said)}, as_json=options.json, text=text)
