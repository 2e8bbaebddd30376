"""What comes of an append, as its caller is told: where its events stand, or the error of what refused it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.engine.log import decide
from perdure.engine.log.decide import Item, Outcome
from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists, Conflict, Fenced, InvalidEvent

__all__ = ["Appended", "name_of", "result_of", "results_of"]


class Appended(msgspec.Struct, frozen=True, gc=False):
    """An append that is in the log. already: it was there before, with the same ids; nothing was written now.

    versions: of the events handed in, in order. version: the newest of them (the agent's own where no event was handed in).
    """

    name: AgentName
    versions: tuple[int, ...]
    version: int
    already: bool


def result_of(name: AgentName, item: Item, outcome: Outcome) -> Appended:
    """As `results_of`, of one agent; name: as its caller gave it."""
    if type(outcome) is decide.Written and len(item.drafts) == 1 and type(name) is AgentName:
        version = outcome.places[0][0]
        return Appended(name, (version,), version, False)
    return results_of((item,), outcome)[0]


def results_of(items: Sequence[Item], outcome: Outcome) -> list[Appended]:
    """Where the events stand, an item each. Raises Conflict, Fenced, InvalidEvent, AlreadyExists for what was refused."""
    if isinstance(outcome, decide.Written):
        results = []
        for item, place in zip(items, outcome.places, strict=True):
            versions = tuple(range(place[0], place[0] + len(item.drafts)))
            results.append(Appended(name_of(item), versions, versions[-1] if versions else place[0] - 1, already=False))
        return results
    if isinstance(outcome, decide.AlreadyThere):
        return [
            Appended(name_of(item), tuple(versions), max(versions, default=0), already=True)
            for item, versions in zip(items, outcome.versions, strict=True)
        ]
    item = items[outcome.item]
    tenant, agent = name_of(item)
    if isinstance(outcome, decide.Refused):
        raise Conflict(
            f"agent {item.record.agent!r} is at version {outcome.version}, expected {item.expected!r}",
            version=outcome.version,
            hint="load the state again and decide anew",
            tenant=tenant,
            agent=agent,
        )
    if isinstance(outcome, decide.Shut):
        held = "is fenced" if outcome.fenced else f"belongs to epoch {outcome.epoch}"
        raise Fenced(f"agent {item.record.agent!r} {held}; this writer holds {item.epoch}", epoch=outcome.epoch, tenant=tenant, agent=agent)
    if isinstance(outcome, decide.Ahead):
        message = f"event id {outcome.id} is {outcome.ahead_s:.0f} s ahead of the log's clock"
        raise InvalidEvent(message, hint="set this machine's clock", tenant=tenant, agent=agent)
    message = f"event {outcome.known} is in the log already, others of the same append are not"
    raise AlreadyExists(message, tenant=tenant, agent=agent)


def name_of(item: Item) -> AgentName:
    """Whose events they are."""
    return AgentName(item.record.tenant, item.record.agent)
