"""perdure migrate drain | undrain | rebalance | pin | unpin | pins"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import amount, emit, plain, table
from perdure.engine.log.records import AgentName
from perdure.migration.fleet import AT_ONCE_DEFAULT, MOVES_DEFAULT, FleetReport
from perdure.migration.leveling import By, Level
from perdure.migration.records import Migration

__all__ = ["drain", "pin", "pins", "rebalance", "undrain", "unpin"]

_FAILED = 1
AtOnce = Annotated[int, Parameter(help="How many agents are moved at once.")]


async def drain(
    node: str,
    /,
    *,
    at_once: AtOnce = AT_ONCE_DEFAULT,
    pinned_too: Annotated[bool, Parameter(help="Move pinned agents too.", negative=())] = False,
    options: Options = DEFAULTS,
) -> int:
    """Move every agent of a node to others; it takes no new ones until `undrain`. Exit code 1 when some stayed."""
    async with session(options) as engine:
        report = await engine.migrations.drain_node(node, at_once=at_once, pinned_too=pinned_too, seen=_seen(options))
    return _reported(report, {"node": node}, options)


async def undrain(node: str, /, *, options: Options = DEFAULTS) -> None:
    """Let a drained node take agents again."""
    async with session(options) as engine:
        await engine.migrations.fleet.undrain_node(node)
    emit({"node": node, "drained": False}, as_json=options.json, text=f"{node} takes agents again")


async def rebalance(
    *,
    by: By = "agents",
    moves_max: Annotated[int, Parameter(help="At most so many moves.")] = MOVES_DEFAULT,
    at_once: AtOnce = AT_ONCE_DEFAULT,
    dry_run: Annotated[bool, Parameter(help="Say what would be moved.", negative=())] = False,
    options: Options = DEFAULTS,
) -> int:
    """Balance agents between live nodes. Pinned agents stay, and those moved within the last minute rest: they are counted."""
    async with session(options) as engine:
        if dry_run:
            planned = await engine.migrations.fleet.plan_rebalance(by=by, moves_max=moves_max)
            emit({"level": _level(planned)}, as_json=options.json, text=_lines(planned))
            return 0
        planned, report = await engine.migrations.rebalance(by=by, moves_max=moves_max, at_once=at_once, seen=_seen(options))
    return _reported(report, {"level": _level(planned)}, options, _resting(planned))


async def pin(agent: str, /, *, reason: str = "", options: Options = DEFAULTS) -> None:
    """Keep an agent on its node: neither `rebalance` nor `drain` moves it."""
    async with session(options) as engine:
        await engine.migrations.fleet.pin(AgentName(options.tenant_name, agent), reason=reason)
    emit({"agent": agent, "pinned": True}, as_json=options.json, text=f"{agent} stays where it is")


async def unpin(agent: str, /, *, options: Options = DEFAULTS) -> None:
    """Let a pinned agent be moved again."""
    async with session(options) as engine:
        await engine.migrations.fleet.unpin(AgentName(options.tenant_name, agent))
    emit({"agent": agent, "pinned": False}, as_json=options.json, text=f"{agent} may be moved")


async def pins(*, options: Options = DEFAULTS) -> None:
    """The pinned agents."""
    async with session(options) as engine:
        found = await engine.migrations.fleet.pins()
    rows = [(each.tenant, each.agent, each.reason) for each in found]
    text = table(("TENANT", "AGENT", "REASON"), rows) if rows else "no agent is pinned"
    emit({"pins": [plain(each) for each in found]}, as_json=options.json, text=text)


def _seen(options: Options) -> Any:
    if options.json or not sys.stderr.isatty():
        return None

    def show(done: Migration) -> None:
        print(f"  {done.agent} to {done.target}: {done.phase}, {done.downtime_target_ms:.1f} ms", file=sys.stderr, flush=True)

    return show


def _reported(report: FleetReport, more: dict[str, Any], options: Options, said: Sequence[str] = ()) -> int:
    facts = plain(report)
    del facts["downtime_ms"]
    slowest = max(report.downtime_ms, default=0.0)
    lines = [
        f"{amount(report.moved, 'agent')} moved in {report.duration_s:.1f} s, at most {slowest:.1f} ms without answers",
        *(f"  {each.agent}: {each.reason}" for each in report.failed),
    ]
    if report.pinned:
        lines.append(f"  {amount(report.pinned, 'pinned agent')} stayed")
    if report.left:
        lines.append(f"  {amount(report.left, 'agent')} stayed" + (": too many failed in a row" if report.stopped else ""))
    lines += [f"  {line}" for line in said]
    emit({**facts, "downtime_max_ms": slowest, "ok": report.ok, **more}, as_json=options.json, text="\n".join(lines))
    return 0 if report.ok else _FAILED


def _level(planned: Level) -> dict[str, Any]:
    moves = [{"tenant": each.name.tenant, "agent": each.name.agent, "from": each.source, "to": each.target} for each in planned.moves]
    rest = {"resting": planned.resting, "rest_until": plain(planned.rest_until)}
    return {"moves": moves, "before": planned.before, "after": planned.after, **rest}


def _lines(planned: Level) -> str:
    rows = [(node, f"{planned.before[node]:g}", f"{planned.after[node]:g}") for node in sorted(planned.before)]
    return "\n".join([table(("NODE", "CARRIES", "WOULD CARRY"), rows), amount(len(planned.moves), "move"), *_resting(planned)])


def _resting(planned: Level) -> list[str]:
    """A line for people, if agents rest: why a second run soon after the first moves less, and when it is worth another one."""
    if planned.rest_until is None:
        return []
    until = planned.rest_until.replace(microsecond=0) + timedelta(seconds=1)
    rest = "rests" if planned.resting == 1 else "rest"
    return [f"{amount(planned.resting, 'agent')} {rest} until about {until:%H:%M:%S}Z, being moved or moved within the last minute"]
