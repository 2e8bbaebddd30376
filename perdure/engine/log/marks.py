"""Marks on agents that move between two logs: kept where an agent's owner stands, so that whoever reads the row sees them.

An owner that begins with `perdure/` is no node but such a mark, followed by the id of the transfer:

- **staged**: here its history is being put in. Not served yet.
- **leaving**: from here it goes away, and was fenced for that. Not served any more, unless the transfer is broken off.
- **moved**: it went away for good; the forwarding record tells where to.
- **left over**: a transfer to here was broken off; what it had put in waits for the next one.
- **past**: it never was here itself; agents that were forked from it are, and its first versions with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from perdure.errors import AgentMoved, NotServed, PerdureError

if TYPE_CHECKING:
    from perdure.engine.log.records import AgentRecord

__all__ = ["HIDDEN", "LEAVING", "LEFT_OVER", "MOVED", "PAST", "RESERVED", "STAGED", "Mark", "mark_of", "owner_of", "refusal"]

RESERVED: Final = "perdure/"
STAGED: Final = "staged"
LEAVING: Final = "leaving"
MOVED: Final = "moved"
LEFT_OVER: Final = "left-over"
PAST: Final = "past"
HIDDEN: Final = (STAGED, LEFT_OVER, PAST)
"""What no list shows."""


class Mark(NamedTuple):
    """kind: of those above. transfer: its id."""

    kind: str
    transfer: str


def owner_of(kind: str, transfer: str) -> str:
    """The owner that says so."""
    return f"{RESERVED}{kind} {transfer}"


def mark_of(owner: str) -> Mark | None:
    """The mark that an owner is; None: a node, or nobody."""
    if not owner.startswith(RESERVED):
        return None
    kind, _, transfer = owner.removeprefix(RESERVED).partition(" ")
    return Mark(kind, transfer)


def refusal(record: AgentRecord, address: str | None) -> PerdureError | None:
    """What a read or a command of a marked agent is answered with; None where it is not marked. address: where it is, if that is known."""
    mark = mark_of(record.owner)
    if mark is None:
        return None
    who = f"agent {record.agent!r}"
    if address is not None and mark.kind in (MOVED, STAGED):
        hint = "ask there; `perdure transfer forward` tells it too"
        return AgentMoved(f"{who} has moved to {address}", hint=hint, tenant=record.tenant, agent=record.agent, address=address)
    if mark.kind == LEFT_OVER:
        message = f"{who} is not here: a transfer to here was broken off"
        return NotServed(message, hint="run the transfer again, at its source", tenant=record.tenant, agent=record.agent)
    if mark.kind == PAST:
        message = f"of {who} only the beginning is here, for agents that were forked from it"
        return NotServed(message, hint="ask the engine that it is at", tenant=record.tenant, agent=record.agent)
    return NotServed(f"{who} is moving between two engines", hint="try again in a moment", tenant=record.tenant, agent=record.agent)
