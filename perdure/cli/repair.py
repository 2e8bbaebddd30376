"""perdure repair"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from perdure.cli.chosen import ApprovalId
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, emit, plain
from perdure.config import masked
from perdure.errors import InvalidInput

__all__ = ["repair"]

_INTEGRITY = 5


async def repair(
    *,
    backup: Annotated[str | None, Parameter(help="Where backups are kept, as a source of good events.", env_var="PERDURE_BACKUP")] = None,
    yes: Annotated[bool, Parameter(help="Do it.", negative=())] = False,
    dry_run: Annotated[bool, Parameter(help="Say what would be done.", negative=())] = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> int:
    """Put right what does not hold: events of the log from the topic or a backup, where the hash chain proves them; then topic and cache from
    the log. What no copy fits for is quarantined. Exit code 5 when something is left."""
    from perdure.client.repair import repair as work

    if (yes or approval is not None) == dry_run:
        raise InvalidInput("repair changes what is stored", hint="give --dry-run to see what, --yes to do it")
    async with session(options) as engine:
        told = {"backup": None if backup is None else masked(backup)}
        async with engine.approvals.guard("log.repair", told, yes=yes, approval=approval, dry_run=dry_run) as passage:
            with Progress("repair", quiet=options.json, unit="agents") as progress:
                report = await work(engine, backups=backup, dry_run=dry_run, progress=progress)
            passage.outcome = {"actions": len(report.actions), "left": len(report.unresolved)}
    many = "1 thing" if len(report.actions) == 1 else f"{len(report.actions)} things"
    verb = "to do" if dry_run else "done"
    lines = [f"{many} {verb}, of {report.agents} agents that were looked at" if report.actions else "nothing is damaged"]
    for action in report.actions:
        whose = f" {action.tenant}/{action.agent}" if action.agent else ""
        lines.append(f"  {action.what}{whose}: {action.detail}{f', from the {action.source}' if action.source else ''}")
    lines += [f"left: {problem}" for problem in report.unresolved]
    emit({"ok": report.ok, **plain(report)}, as_json=options.json, text="\n".join(lines))
    return 0 if report.ok else _INTEGRITY
