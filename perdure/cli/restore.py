"""perdure restore"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from perdure.cli.chosen import Actor, ApprovalId, DryRun, Yes, must_mean_it
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain
from perdure.cli.render import pretty
from perdure.client.approvals import acting
from perdure.errors import InvalidInput

__all__ = ["restore"]


async def restore(
    agent: str,
    /,
    *,
    snapshot: UUID | None = None,
    at_version: int | None = None,
    into: Literal["view", "fork", "rollback"] = "view",
    new_agent: str | None = None,
    actor: Actor = None,
    reason: str = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> None:
    """Restore a state that was verified first: to look at it, as a new agent, or as an event that leads the agent back. Nothing is rewritten.

    Parameters
    ----------
    agent
        Whose state.
    snapshot
        Of this snapshot, as it is, or not at all.
    at_version
        At this version, from the nearest whole snapshot and the log. Without both: the newest whole snapshot.
    into
        view prints it; fork makes --new-agent of it; rollback appends an event to the agent (needs --yes).
    new_agent
        With --into fork: the name of the new agent.
    reason
        Why; stands in the event.
    """
    if snapshot is not None and at_version is not None:
        raise InvalidInput("--snapshot and --at-version exclude each other")
    must_mean_it(yes or into != "rollback", dry_run, "this leads the agent back by an event", approval)
    into, who = "view" if dry_run else into, acting(actor)
    told = {"tenant": options.tenant_name, "agents": [agent], "snapshot": snapshot and str(snapshot), "version": at_version}
    async with session(options) as engine:
        name = engine.agent(agent, tenant=options.tenant_name).name
        changes_nothing = into != "rollback"
        guard = engine.approvals.guard("agents.rollback", told, actor=who, yes=yes, approval=approval, dry_run=changes_nothing)
        async with guard as passage:
            done = await engine.snapshots.restore_snapshot(
                name, snapshot=snapshot, version=at_version, into=into, new_agent=new_agent, actor=who, reason=reason
            )
            passage.outcome = {"version": done.version, "appended": done.appended}
    facts = {
        "tenant": options.tenant_name,
        "into": done.into,
        "agent": done.agent,
        "version": done.version,
        "appended": done.appended,
        "snapshot": done.snapshot,
        "integrity_verified": done.integrity_verified,
        "warnings": list(done.warnings),
        "document": done.state.document if into == "view" else None,
    }
    words = f"version {done.version} of {agent}"
    if into != "view":
        words += f" stands as version {done.appended} of {done.agent}"
    text = "\n".join([words, *(f"warning: {each}" for each in done.warnings), *([pretty(done.state.document)] if into == "view" else [])])
    emit(plain(facts), as_json=options.json, text=text)
