"""perdure compact"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

from cyclopts import Parameter

from perdure.cli.chosen import ApprovalId, Done, DryRun, Parallel, Yes, chosen, for_each, must_mean_it
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, emit, plain, table
from perdure.cli.times import parse_time
from perdure.errors import InvalidInput

if TYPE_CHECKING:
    from datetime import datetime

    from perdure.client.engine import Engine
    from perdure.client.upkeep import Compaction
    from perdure.engine.log.records import AgentName

__all__ = ["compact"]

_FLAG: Final = Parameter(negative=())


async def compact(
    *agents: str,
    all: Annotated[bool, _FLAG] = False,
    strategy: Literal["snapshot", "merge", "delete"] = "snapshot",
    keep_last: int | None = None,
    keep_since: str | None = None,
    before_version: int | None = None,
    critical_only: Annotated[bool, _FLAG] = False,
    step_versions: int | None = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    approval: ApprovalId = None,
    parallel: Parallel = 4,
    options: Options = DEFAULTS,
) -> int:
    """Remove agents' first events, never what a retained snapshot, a fork or a running restore needs. States stay readable from there on.

    Parameters
    ----------
    agents
        The agents; or --all for every one of the tenant.
    all
        Every agent of the tenant.
    strategy
        snapshot: a checkpoint is made where the kept events begin. merge: besides, one at the end of every step of --step-versions versions.
        delete: nothing is made, and events go as far as the snapshots that stand allow.
    keep_last
        So many of the newest events stay.
    keep_since
        Events at or after this time stay: a time, or how long ago: 90d.
    before_version
        Events from this version on stay.
    critical_only
        None stays but what the snapshots that must stay need.
    step_versions
        With --strategy merge: versions in one step.
    """
    since = parse_time(keep_since) if keep_since else None
    if (keep_last is not None, since is not None, before_version is not None, critical_only).count(True) != 1:
        raise InvalidInput("which events shall stay?", hint="one of --keep-last, --keep-since, --before-version, --critical-only")
    if before_version is not None and strategy == "merge":
        raise InvalidInput("--before-version goes with the strategies snapshot and delete")
    must_mean_it(yes, dry_run, "this removes events for good", approval)
    told = {
        "tenant": options.tenant_name,
        "agents": sorted(agents) or "all",
        "strategy": strategy,
        "keep_last": keep_last,
        "keep_since": keep_since,
        "before_version": before_version,
        "critical_only": critical_only,
        "step_versions": step_versions,
    }
    wanted = _Wanted(strategy, keep_last, since, before_version, critical_only, step_versions, dry_run)
    async with (
        session(options) as engine,
        engine.approvals.guard("events.compact", told, yes=yes, approval=approval, dry_run=dry_run) as passage,
    ):
        with Progress("compacting", quiet=options.json, unit="agents") as progress:
            names = chosen(engine, options.tenant_name, agents, every=all)
            done = await for_each(names, lambda name: wanted.work(engine, name), parallel=parallel, progress=progress)
        passage.outcome = {"agents": len(done.results), "events": sum(each.events for each in done.results), "failures": done.failures}
    _report(done, options, dry_run=dry_run, every=all)
    return done.code


class _Wanted(NamedTuple):
    """What is asked for of every agent."""

    strategy: Literal["snapshot", "merge", "delete"]
    keep_last: int | None
    since: datetime | None
    before_version: int | None
    critical_only: bool
    step_versions: int | None
    dry_run: bool

    async def work(self, engine: Engine, name: AgentName) -> Compaction:
        if self.before_version is not None and self.strategy == "delete":
            return await engine.upkeep.delete_events(name, self.before_version, dry_run=self.dry_run)
        last = self.keep_last
        if self.before_version is not None:
            last = max(0, await engine.log.version(name) - self.before_version + 1)
        return await engine.upkeep.compact_events(
            name,
            strategy=self.strategy,
            keep_last=last,
            keep_since=self.since,
            critical_only=self.critical_only,
            step_versions=self.step_versions,
            dry_run=self.dry_run,
        )


def _report(done: Done, options: Options, *, dry_run: bool, every: bool) -> None:
    results: list[Compaction] = sorted(done.results, key=lambda each: each.agent)
    events = sum(each.events for each in results)
    facts = {"tenant": options.tenant_name, "dry_run": dry_run, "events": events, "agents": results, "failed": done.failed}
    shown = [each for each in results if each.events or not every]
    rows = [(each.agent, each.first_version, each.events, len(each.checkpoints), each.limited_by or "-") for each in shown]
    lines = [table(("AGENT", "BEGINS AT", "EVENTS", "CHECKPOINTS", "LIMITED BY"), rows)] if rows else []
    lines += [f"  {agent}: {problem}" for agent, problem in done.failed.items()]
    touched = sum(1 for each in results if each.events)
    lines.append(f"{amount(events, 'event')} of {amount(touched, 'agent')} {'would go' if dry_run else 'gone'}")
    emit(plain(facts), as_json=options.json, text="\n".join(lines))
