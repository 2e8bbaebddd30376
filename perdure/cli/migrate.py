"""perdure migrate plan | run | watch | abort | rollback | list | show"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from perdure.cli.chosen import Actor
from perdure.cli.migrate_many import drain, pin, pins, rebalance, undrain, unpin
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain, table
from perdure.client.approvals import acting
from perdure.engine.log.records import AgentName, from_microseconds, rfc3339
from perdure.migration.records import Migration, Strategy, Transfer

__all__ = ["app"]

app = App(name="migrate", help="Move agents between nodes: plan, run, watch, abort, rollback, list, show, drain, rebalance, pin.")
for _many in (drain, undrain, rebalance, pin, unpin, pins):
    app.command(_many)
_FAILED = 1

To = Annotated[str, Parameter(name="--to", help="The node that shall have it.")]
How = Annotated[
    Strategy,
    Parameter(
        help="live: copied beside its work; blue_green: and compared for longer; cold: stopped first; emergency: the source is lost."
    ),
]
By = Annotated[
    Transfer,
    Parameter(help="streaming: snapshot, then the log, round by round; incremental: from the cache; snapshot: once, for quiet agents."),
]
Reason = Annotated[str, Parameter(help="Why; is recorded with it.", show_default=False)]
_FLAG = Parameter(negative=())


@app.command
async def plan(agent: str, /, *, to: To, strategy: How = "live", transfer: By = "streaming", options: Options = DEFAULTS) -> int:
    """What moving an agent would do and cost, and what prevents it; nothing is changed. Exit code 1 if something does."""
    async with session(options) as engine:
        made = await engine.migrations.plan_migration(AgentName(options.tenant_name, agent), to, strategy=strategy, transfer=transfer)
        against = await engine.migrations.validate_migration_plan(made)
    impact = made.impact
    known = f"from {impact.measured} migrations" if impact.measured else "a guess: none was measured yet"
    lines = [
        f"{agent}: from {made.source or 'nobody'} to {made.target}, {made.strategy}",
        f"  phases       {' > '.join(made.phases)}",
        f"  cost         {impact.duration_s:.2f} s, {impact.bytes} bytes, {impact.downtime_ms:.1f} ms without answers ({known})",
        *(f"  must hold    {each}" for each in made.prerequisites),
        *(f"  risk         {each}" for each in made.risks),
        *(f"  way back     {each}" for each in made.rollback),
        *(f"  AGAINST IT   {each.problem.message}" for each in against),
    ]
    obstacles = [{"check": each.check, **each.problem.as_dict()} for each in against]
    emit({"plan": plain(made), "obstacles": obstacles}, as_json=options.json, text="\n".join(lines))
    return _FAILED if against else 0


@app.command
async def run(
    agent: str,
    /,
    *,
    to: To,
    strategy: How = "live",
    transfer: By = "streaming",
    reason: Reason = "",
    actor: Actor = None,
    options: Options = DEFAULTS,
) -> int:
    """Move an agent to a node. Exit code 1 if it was aborted; the source then continues."""
    async with session(options) as engine:
        migrations = engine.migrations
        name = AgentName(options.tenant_name, agent)
        made = await migrations.plan_migration(name, to, strategy=strategy, transfer=transfer, reason=reason, actor=acting(actor))
        done = await migrations.execute_migration(made, seen=_seen(options))
    return _end(done, options)


@app.command
async def watch(migration: str, /, *, options: Options = DEFAULTS) -> int:
    """Follow a migration to its end; it is ended if its target is lost. Exit code 1 if it was aborted."""
    async with session(options) as engine:
        done = await engine.migrations.watch_migration(migration, seen=_seen(options))
    return _end(done, options)


@app.command
async def abort(migration: str, /, *, reason: Reason = "aborted by an operator", options: Options = DEFAULTS) -> None:
    """Abort a migration in any phase before its commit: the source continues."""
    async with session(options) as engine:
        done = await engine.migrations.abort_migration(migration, reason=reason)
    emit({"migration": plain(done)}, as_json=options.json, text=_told(done))


@app.command
async def rollback(
    migration: str, /, *, reason: Reason = "", actor: Actor = None, check: Annotated[bool, _FLAG] = False, options: Options = DEFAULTS
) -> int:
    """Move an agent back to the source of a completed migration; later writes are kept. --check: only say whether that is possible."""
    async with session(options) as engine:
        if check:
            found = await engine.migrations.validate_rollback(migration)
            text = f"can go back to {found.target}" if found.ok else "cannot be rolled back: " + "; ".join(found.against)
            emit(found._asdict(), as_json=options.json, text=text)
            return 0 if found.ok else _FAILED
        done = await engine.migrations.rollback_migration(migration, reason=reason, actor=acting(actor), seen=_seen(options))
    return _end(done, options)


@app.command(name="list")
async def list_(*, open_only: Annotated[bool, _FLAG] = False, limit: int = 50, options: Options = DEFAULTS) -> None:
    """Each agent's newest migration, newest first. --open-only: only running ones."""
    async with session(options) as engine:
        found = await engine.migrations.list_migrations(open_only=open_only, limit=limit)
    rows = [
        (each.id, each.tenant, each.agent, each.source or "-", each.target, each.phase, f"{each.downtime_target_ms:.1f}") for each in found
    ]
    text = table(("MIGRATION", "TENANT", "AGENT", "FROM", "TO", "PHASE", "DOWNTIME MS"), rows) if rows else "no agent was migrated yet"
    emit({"migrations": [plain(each) for each in found]}, as_json=options.json, text=text)


@app.command
async def show(migration: str, /, *, options: Options = DEFAULTS) -> None:
    """One migration with its phases, times and costs."""
    async with session(options) as engine:
        found = await engine.migrations.monitor_migration(migration)
    facts = {name: value for name, value in plain(found).items() if value not in ("", 0, 0.0, None, [], False) and name != "marks"}
    start = found.marks[0].at_us if found.marks else 0
    lines = [f"  {name:<22}{value}" for name, value in map(_moment, facts.items())]
    lines += [f"  {(mark.at_us - start) / 1000:>10.1f} ms  {mark.phase}" for mark in found.marks]
    emit({"migration": plain(found)}, as_json=options.json, text="\n".join([found.id, *lines]))


def _moment(fact: tuple[str, Any]) -> tuple[str, Any]:
    """For people: a fact that is unix microseconds as a time."""
    name, value = fact
    return (name.removesuffix("_us"), rfc3339(from_microseconds(value))) if name.endswith("_us") else fact


def _seen(options: Options) -> Any:
    """Live progress, on a terminal."""
    if options.json or not sys.stderr.isatty():
        return None

    def show_phase(migration: Migration) -> None:
        print(f"  {migration.phase:<11} version {migration.copied_version or migration.witness_version}", file=sys.stderr, flush=True)

    return show_phase


def _end(done: Migration, options: Options) -> int:
    emit({"migration": plain(done)}, as_json=options.json, text=_told(done))
    return 0 if done.phase == "committed" else _FAILED


def _told(done: Migration) -> str:
    parts = [f"{done.agent}: {done.phase}, from {done.source or 'nobody'} to {done.target}"]
    parts += [f"at version {done.version}"] * bool(done.version)
    parts += [f"{done.downtime_target_ms:.1f} ms without answers"] * bool(done.downtime_target_ms)
    parts += [f"integrity {done.integrity}"] * bool(done.integrity)
    parts += [f"because {done.error}"] * bool(done.error)
    return ", ".join(parts) + f"; id {done.id}"
