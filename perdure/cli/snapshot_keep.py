"""perdure snapshot verify | delete | clean | sweep"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from cyclopts import Parameter

from perdure.cli.chosen import ApprovalId, DryRun, Parallel, Yes, chosen, for_each, must_mean_it
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, plain, size
from perdure.cli.times import parse_seconds
from perdure.errors import InvalidInput

if TYPE_CHECKING:
    from perdure.client.engine import Engine
    from perdure.client.snapshot_facts import Snapshot, Verification

__all__ = ["clean", "compress", "delete", "sweep", "verify"]

_FLAG: Final = Parameter(negative=())
_FAILED: Final = 1
_INTEGRITY: Final = 5
PARALLEL: Final = 4
_SUMMED: Final = ("snapshots", "rewritten", "bytes_before", "bytes_after")


async def verify(
    *ids: UUID,
    agent: str | None = None,
    all: Annotated[bool, _FLAG] = False,
    replay: Annotated[bool, _FLAG] = False,
    options: Options = DEFAULTS,
) -> int:
    """Read snapshots as a whole, and compare them with the log. Exit code 5 when one is damaged; it is marked then, and not used again. Those that
    were marked before are named and not read; exit code 1 where an agent has no others.

    Parameters
    ----------
    ids
        These; or --agent, or --all.
    agent
        All of this agent's.
    all
        All of the tenant's.
    replay
        Compare each also with the state that the log alone gives.
    """
    if (bool(ids), agent is not None, all).count(True) != 1:
        raise InvalidInput("which snapshots?", hint="name their ids, or --agent, or --all")
    found: list[Verification] = []
    async with session(options) as engine:
        listed = [] if ids else await _listed(engine, options.tenant_name, agent)
        with Progress("verifying", quiet=options.json, unit="snapshots") as progress:
            for id in ids or [each.id for each in listed if not each.damage]:
                found.append(await engine.snapshots.verify_snapshot(options.tenant_name, id, replay=replay))
                progress(len(found))
    facts, lines, code = _verdict(found, listed)
    emit(facts, as_json=options.json, text="\n".join(lines))
    return code


def _verdict(found: list[Verification], listed: list[Snapshot]) -> tuple[dict[str, Any], list[str], int]:
    """What came of it, in lines, and the exit code. listed: what stood in the registry before, damaged ones too."""
    bad = [each for each in found if not each.ok]
    bytes_read = sum(each.bytes_read for each in found)
    known = [each for each in listed if each.damage]
    without = sorted({each.agent for each in known} - {each.agent for each in listed if not each.damage})
    facts = {
        "ok": not bad and not without,
        "verified": len(found),
        "bytes_read": bytes_read,
        "damaged": [_damage(each.snapshot, each.problem) for each in bad],
        "known_damaged": [_damage(each, each.damage) for each in known],
        "agents_without": without,
    }
    verdict = (
        "DAMAGE FOUND" if bad else "NOT ENOUGH: agents have damaged ones only" if without else "all are whole" if found else "there is none"
    )
    lines = [f"{amount(len(found), 'snapshot')} verified, {size(bytes_read)} read: {verdict}"]
    lines += [f"  {each.snapshot.id} {each.snapshot.agent} version {each.snapshot.version}: {each.problem}" for each in bad]
    lines += [f"  {each.id} {each.agent} version {each.version}, known before: {each.damage}" for each in known]
    lines += [f"  {agent} has no whole snapshot: `perdure snapshot create {agent}` makes one of the log" for agent in without]
    return facts, lines, _INTEGRITY if bad else _FAILED if without else 0


def _damage(snapshot: Snapshot, problem: str) -> dict[str, Any]:
    return {"id": snapshot.id, "agent": snapshot.agent, "version": snapshot.version, "problem": problem}


async def _listed(engine: Engine, tenant: str, agent: str | None) -> list[Snapshot]:
    if agent is not None:
        return await engine.snapshots.list_snapshots(engine.agent(agent, tenant=tenant).name)
    return [each async for each in engine.snapshots.all_snapshots(tenant)]


async def delete(
    *ids: UUID,
    even_permanent: Annotated[bool, _FLAG] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> None:
    """Unregister snapshots; a later sweep removes their objects. An agent's newest three are kept.

    Parameters
    ----------
    ids
        Which.
    even_permanent
        Permanent ones, too.
    """
    if not ids:
        raise InvalidInput("which snapshots?", hint="perdure snapshot list shows their ids")
    must_mean_it(yes, dry_run, f"this deletes {amount(len(ids), 'snapshot')} for good", approval)
    told = {"tenant": options.tenant_name, "ids": sorted(map(str, ids)), "even_permanent": even_permanent}
    async with (
        session(options) as engine,
        engine.approvals.guard("snapshots.delete", told, yes=yes, approval=approval, dry_run=dry_run) as passage,
    ):
        deleted: list[str] = []
        passage.outcome = {"deleted": deleted}
        for id in ids:
            if dry_run:
                await engine.snapshots.get_snapshot(options.tenant_name, id)
            else:
                await engine.snapshots.delete_snapshot(options.tenant_name, id, even_permanent=even_permanent)
            deleted.append(str(id))
    facts = {"deleted": list(ids), "dry_run": dry_run}
    emit(facts, as_json=options.json, text=f"{count(len(ids))} {'are there and would be asked to go' if dry_run else 'deleted'}")


async def clean(
    *agents: str,
    all: Annotated[bool, _FLAG] = False,
    newest: int | None = None,
    keep: str = "0s",
    days: int = 7,
    dry_run: DryRun = False,
    yes: Yes = False,
    approval: ApprovalId = None,
    parallel: Parallel = PARALLEL,
    options: Options = DEFAULTS,
) -> int:
    """Unregister snapshots that neither an expiry nor the retention policy keeps.

    Parameters
    ----------
    agents
        The agents; or --all for every one of the tenant.
    all
        Every agent of the tenant.
    newest
        Keep so many of the newest; at least 3.
    keep
        Keep all that are younger: 90s, 15m, 2h, 3d.
    days
        Keep one for each of the last so many days.
    """
    from perdure.limits import SNAPSHOTS_NEWEST_MIN
    from perdure.snapshots.retention import RetentionPolicy

    policy = RetentionPolicy(newest=newest or SNAPSHOTS_NEWEST_MIN, keep_s=parse_seconds(keep), days=days)
    must_mean_it(yes, dry_run, "this forgets snapshots for good", approval)
    told = {"tenant": options.tenant_name, "agents": sorted(agents) or "all", "newest": policy.newest, "keep": keep, "days": days}
    async with (
        session(options) as engine,
        engine.approvals.guard("snapshots.clean", told, yes=yes, approval=approval, dry_run=dry_run) as passage,
    ):
        with Progress("cleaning", quiet=options.json, unit="agents") as progress:
            names = chosen(engine, options.tenant_name, agents, every=all)
            done = await for_each(
                names,
                lambda name: engine.upkeep.cleanup_old_states(name, policy, dry_run=dry_run),
                parallel=parallel,
                progress=progress,
            )
        gone = [each for cleaned in done.results for each in cleaned.deleted]
        passage.outcome = {"deleted": len(gone), "failures": done.failures}
    kept = sum(len(cleaned.kept) for cleaned in done.results)
    facts = {
        "tenant": options.tenant_name,
        "dry_run": dry_run,
        "kept": kept,
        "deleted": [{"id": each.id, "agent": each.agent, "version": each.version} for each in gone],
        "failed": done.failed,
    }
    text = f"{amount(len(gone), 'snapshot')} {'would be ' if dry_run else ''}forgotten, {count(kept)} stay"
    emit(plain(facts), as_json=options.json, text=text)
    return done.code


async def compress(
    *agents: str,
    all: Annotated[bool, _FLAG] = False,
    codec: str = "zstd",
    dry_run: DryRun = False,
    parallel: Parallel = PARALLEL,
    options: Options = DEFAULTS,
) -> int:
    """Rewrite stored states that were made with another codec, an older dictionary or an older key. Each takes the old one's place in one step.

    Parameters
    ----------
    agents
        The agents; or --all for every one of the tenant.
    all
        Every agent of the tenant.
    codec
        zstd, lz4, snappy, gzip or none.
    """
    async with session(options) as engine:
        with Progress("compressing", quiet=options.json, unit="agents") as progress:
            names = chosen(engine, options.tenant_name, agents, every=all)
            done = await for_each(
                names, lambda name: engine.upkeep.compress_states(name, codec=codec, dry_run=dry_run), parallel=parallel, progress=progress
            )
    totals = {field: sum(getattr(each, field) for each in done.results) for field in _SUMMED}
    before, after = size(totals["bytes_before"]), size(totals["bytes_after"])
    text = f"{count(totals['rewritten'])} of {amount(totals['snapshots'], 'snapshot')} {'would be ' if dry_run else ''}rewritten"
    emit(
        {"tenant": options.tenant_name, "codec": codec, "dry_run": dry_run, **totals, "failed": done.failed},
        as_json=options.json,
        text=text if dry_run else f"{text}: {before} before, {after} now",
    )
    return done.code


async def sweep(
    *, grace: str = "1d", dry_run: DryRun = False, yes: Yes = False, approval: ApprovalId = None, options: Options = DEFAULTS
) -> None:
    """Remove objects that no snapshot names any more, of all tenants.

    Parameters
    ----------
    grace
        What is younger stays: 15m, 2h, 3d.
    """
    must_mean_it(yes, dry_run, "this removes objects for good", approval)
    async with (
        session(options) as engine,
        engine.approvals.guard("snapshots.sweep", {"grace": grace}, yes=yes, approval=approval, dry_run=dry_run) as passage,
    ):
        with Progress("sweeping", quiet=options.json, unit="objects") as progress:
            swept = await engine.upkeep.sweep(grace_s=parse_seconds(grace), dry_run=dry_run, progress=progress)
        passage.outcome = {"objects": swept.gone, "bytes": swept.gone_bytes}
    lines = [
        f"{amount(swept.gone, 'object')} ({size(swept.gone_bytes)}) {'would be ' if dry_run else ''}removed,"
        f" {count(swept.named)} are in use, {count(swept.young)} are too young"
    ]
    lines += [f"  tenant {tenant} was left out: {reason}" for tenant, reason in swept.skipped.items()]
    emit(plain(swept), as_json=options.json, text="\n".join(lines))
