"""perdure migrate plan | run"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain
from perdure.engine.log.contract import AgentName
from perdure.migration.records import Migration, Strategy

__all__ = ["app"]

app = App(name="migrate", help="Move agents between nodes while they are talked to: plan, run.")
_FAILED = 1

To = Annotated[str, Parameter(name="--to", help="The node that shall have it.")]


@app.command
async def plan(agent: str, /, *, to: To, strategy: Strategy = "live", options: Options = DEFAULTS) -> int:
    """What moving an agent would do and cost, and what speaks against it; nothing is changed. Exit code 1 when something does."""
    async with session(options) as engine:
        made = await engine.migrations.plan_migration(AgentName(options.tenant_name, agent), to, strategy=strategy)
        against = await engine.migrations.validate_migration_plan(made)
    lines = [f"{agent}: from {made.source or 'nobody'} to {made.target}, {made.strategy}: {' > '.join(made.phases)}"]
    impact = made.impact
    lines.append(f"  about {impact.duration_s:.1f} s, {impact.bytes} bytes, {impact.downtime_ms:.1f} ms without answers")
    lines += [f"  against it: {each.problem.message}" for each in against]
    obstacles = [{"check": each.check, **each.problem.as_dict()} for each in against]
    emit({"plan": plain(made), "obstacles": obstacles}, as_json=options.json, text="\n".join(lines))
    return _FAILED if against else 0


@app.command
async def run(agent: str, /, *, to: To, strategy: Strategy = "live", reason: str = "", options: Options = DEFAULTS) -> int:
    """Move an agent to a node. Exit code 1 when it was aborted; the source then goes on."""
    async with session(options) as engine:
        made = await engine.migrations.plan_migration(AgentName(options.tenant_name, agent), to, strategy=strategy, reason=reason)
        done = await engine.migrations.execute_migration(made, seen=None if options.json else _show)
    emit({"migration": plain(done)}, as_json=options.json, text=_told(done))
    return 0 if done.phase == "committed" else _FAILED


def _show(migration: Migration) -> None:
    if sys.stderr.isatty():
        print(f"  {migration.phase}", file=sys.stderr, flush=True)


def _told(migration: Migration) -> str:
    facts: dict[str, Any] = {
        "from": migration.source or "nobody",
        "to": migration.target,
        "downtime_ms": migration.downtime_target_ms,
        "path": migration.path,
        "version": migration.version,
        "integrity": migration.integrity,
        "error": migration.error,
    }
    return f"{migration.agent}: {migration.phase}, " + ", ".join(f"{name} {value}" for name, value in facts.items() if value)
