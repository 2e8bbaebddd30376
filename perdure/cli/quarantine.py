"""perdure quarantine list | resolve"""

from __future__ import annotations

from typing import Any

from cyclopts import App

from perdure.cli.chosen import ApprovalId
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain, table

__all__ = ["app"]

app = App(name="quarantine", help="Agents whose projection is halted: list, resolve.")


@app.command(name="list")
async def list_(*, options: Options = DEFAULTS) -> None:
    """The halted agents, each with the reason."""
    async with session(options) as engine:
        entries = await engine.quarantine.list(options.tenant)
    rows: list[dict[str, Any]] = [plain(entry) for entry in entries]
    columns = list(rows[0]) if rows else []
    text = (
        table([name.upper() for name in columns], ([row[name] for name in columns] for row in rows)) if rows else "no agent is quarantined"
    )
    emit({"quarantined": rows}, as_json=options.json, text=text)


@app.command
async def resolve(agent: str, /, *, approval: ApprovalId = None, options: Options = DEFAULTS) -> None:
    """Resume an agent's projection, from the log."""
    told = {"tenant": options.tenant_name, "agents": [agent]}
    async with session(options) as engine, engine.approvals.guard("quarantine.resolve", told, yes=True, approval=approval) as passage:
        version = await engine.quarantine.resolve(options.tenant_name, agent)
        passage.outcome = {"version": version}
    emit(
        {"tenant": options.tenant_name, "agent": agent, "version": version},
        as_json=options.json,
        text=f"{agent} goes on at version {version}",
    )
