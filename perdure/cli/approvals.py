"""perdure approve | approvals | audit"""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from perdure.cli.chosen import Actor
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain, table
from perdure.cli.render import excerpt, pretty
from perdure.client.approval_rules import OPERATIONS, Approval, needed
from perdure.engine.log.records import from_microseconds, rfc3339
from perdure.errors import InvalidInput

__all__ = ["app", "approve", "audit"]

app = App(name="approvals", help="Pending approvals; `approvals policy`: which operations need one.")

AUDIT_ENTRIES_MAX = 10_000


async def approve(
    id: str,
    /,
    *,
    deny: Annotated[bool, Parameter(help="Say no.", negative=())] = False,
    reason: Annotated[str, Parameter(help="Why; stands in the audit trail.")] = "",
    actor: Actor = None,
    options: Options = DEFAULTS,
) -> None:
    """Approve an operation that somebody else asked for: once, with exactly its arguments, before it expires."""
    async with session(options) as engine:
        decided = await engine.approvals.approve(id, actor=actor, deny=deny, reason=reason)
    words = f"{decided.id} is {decided.state}: {decided.operation} by {decided.asked_by}, with\n{pretty(decided.arguments)}"
    emit(plain(decided), as_json=options.json, text=words)


@app.default
async def approvals(
    *,
    all: Annotated[bool, Parameter(help="Those that are over, too.", negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """What waits for an approval, or was approved and not used yet."""
    async with session(options) as engine:
        found = await engine.approvals.pending(all=all)
    rows = [_row(each) for each in found]
    text = table(("ID", "OPERATION", "STATE", "ASKED BY", "EXPIRES", "ARGUMENTS"), rows) if rows else "nothing waits for an approval"
    emit({"approvals": plain(found)}, as_json=options.json, text=text)


@app.command
async def policy(
    operation: str | None = None,
    level: Literal["free", "yes", "approval"] | None = None,
    /,
    *,
    actor: Actor = None,
    approval: Annotated[str | None, Parameter(help="Asking for less needs one.")] = None,
    options: Options = DEFAULTS,
) -> None:
    """What each operation needs: nothing (free: only told in the trail), --yes, or the approval of another person. With both arguments: set it."""
    if (operation is None) != (level is None):
        raise InvalidInput("an operation and what it shall need", hint="perdure approvals policy OPERATION free|yes|approval")
    async with session(options) as engine:
        if operation is not None and level is not None:
            await engine.approvals.set_policy(operation, level, actor=actor, approval=approval)
        levels = await engine.approvals.policy()
    facts = {name: {"needs": needed(name, levels), "takes": each.takes, "permanent": each.permanent} for name, each in OPERATIONS.items()}
    rows = [(name, fact["needs"], "yes" if fact["permanent"] else "no", fact["takes"]) for name, fact in facts.items()]
    emit({"operations": facts}, as_json=options.json, text=table(("OPERATION", "NEEDS", "FOR GOOD", "TAKES AWAY"), rows))


async def audit(
    *,
    limit: Annotated[int, Parameter(help="So many of the newest entries.")] = 50,
    id: Annotated[str | None, Parameter(help="Only of this operation or approval.")] = None,
    unfinished: Annotated[bool, Parameter(help="Only operations that began and have not ended.", negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """Who did what to the log and its copies, with which arguments and result; newest first."""
    if not 1 <= limit <= AUDIT_ENTRIES_MAX:
        raise InvalidInput(f"--limit {limit}", hint=f"1 to {AUDIT_ENTRIES_MAX}")
    async with session(options) as engine:
        open_ = await engine.approvals.unfinished()
        entries = [] if unfinished else await engine.approvals.audit(limit=limit, id=id)
    if unfinished:
        rows = [(key, each["operation"], each["actor"], excerpt(each["arguments"])) for key, each in open_.items()]
        text = table(("ID", "OPERATION", "ACTOR", "ARGUMENTS"), rows) if rows else "everything that began has ended"
        emit({"unfinished": plain(open_)}, as_json=options.json, text=text)
        return
    lines = [f"{each.time}  {each.type:<20} {each.id:<32} {each.data.get('actor', '')}: {excerpt(_said(each.data))}" for each in entries]
    emit({"entries": plain(entries)}, as_json=options.json, text="\n".join(lines) or "nothing was done yet")


def _said(data: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in data.items() if name != "actor"}


def _row(each: Approval) -> tuple[str, ...]:
    return each.id, each.operation, each.state, each.asked_by, rfc3339(from_microseconds(each.expires_us)), excerpt(each.arguments)
