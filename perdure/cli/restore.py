"""perdure restore"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from perdure.cli.chosen import Yes, must_mean_it
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain
from perdure.cli.render import pretty
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
    actor: str = "cli",
    reason: str = "",
    yes: Yes = False,
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
    actor
        Who does it; stands in the event.
    reason
        Why; stands in the event.
    """
    if snapshot is not None and at_version is not None:
        raise InvalidInput("--snapshot and --at-version exclude each other")
    must_mean_it(yes or into != "rollback", False, "leading an agent back")
    async with session(options) as engine:
        name = engine.agent(agent, tenant=options.tenant_name).name
        done = await engine.snapshots.restore_snapshot(
            name, snapshot=snapshot, version=at_version, into=into, new_agent=new_agent, actor=actor, reason=reason
        )
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
