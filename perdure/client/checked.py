"""Appends of agents whose type has a schema: what would lead to a state that does not fit is refused before anything is stored.

Invariant: every state that such an append leads to was checked, whoever else writes at the same moment. It is checked on the newest state,
and appended only where that state still stands; when it has moved, it is checked anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from perdure.client.schemas import Schemas
from perdure.engine.fold import apply
from perdure.engine.log.expected import Expected, ExpectedVersion, holds
from perdure.engine.log.log import AgentAppend, Appended
from perdure.engine.log.records import AgentName
from perdure.engine.vault import Vault
from perdure.errors import Conflict, SchemaViolation
from perdure.projections.reader import StateReader

__all__ = ["ATTEMPTS_MAX", "append_checked"]

ATTEMPTS_MAX: Final = 8
"""Times that an append is checked anew because its agent has moved meanwhile, before `Conflict`."""

Write = Callable[[Sequence[AgentAppend]], Awaitable[list[Appended]]]


async def append_checked(
    appends: Sequence[AgentAppend], vault: Vault, schemas: Schemas, reader: StateReader, write: Write
) -> list[Appended]:
    """Append well-formed events through `write` after the schemas of the agents' types were satisfied.

    Raises SchemaViolation (nothing is stored), Conflict, and what `write` raises.
    """
    types = [(await vault.obtain_served(append.name))[0].type for append in appends]
    watched = [number for number, agent_type in enumerate(types) if agent_type in schemas.types]
    if not watched:
        return await write(appends)
    for attempt in range(ATTEMPTS_MAX):
        pinned = list(appends)
        for number in watched:
            pinned[number] = await _checked(appends[number], types[number], vault, schemas, reader)
        try:
            return await write(pinned)
        except Conflict as problem:
            moved = type(problem) is Conflict and _moved(problem, appends, pinned)
            if not moved or attempt + 1 == ATTEMPTS_MAX:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _checked(append: AgentAppend, agent_type: str, vault: Vault, schemas: Schemas, reader: StateReader) -> AgentAppend:
    """The append, bound to the version whose state was checked."""
    name, expected = append.name, append.expected
    state = await reader.state(*name)
    if not holds(expected, state.version):
        if not _may_hold_later(expected, state.version) or await _is_there(append, vault):
            return append  # refused by the log, or known to it: nothing new is written either way
        raise Conflict(
            f"agent {name.agent!r} is at version {state.version}, expected {expected!r}",
            version=state.version,
            tenant=name.tenant,
            agent=name.agent,
        )
    document = state.document
    for event in append.events:
        document, _warnings = apply(document, event.changes)
    try:
        schemas.validate(agent_type, document)
    except SchemaViolation as problem:
        if await _is_there(append, vault):
            return append  # a retry of what was written before
        problem.tenant, problem.agent, problem.version = name.tenant, name.agent, state.version
        raise
    return append._replace(expected=state.version)


def _may_hold_later(expected: ExpectedVersion, version: int) -> bool:
    """Whether an expectation that does not hold at a version may hold at a later one; versions only grow."""
    return expected is Expected.STREAM_EXISTS or (not isinstance(expected, Expected) and expected > version)


def _moved(problem: Conflict, appends: Sequence[AgentAppend], pinned: Sequence[AgentAppend]) -> bool:
    """Whether the refused agent is only not where it was checked, while what its caller expected still holds."""
    refused = AgentName(str(problem.tenant), str(problem.agent))
    for append, bound in zip(appends, pinned, strict=True):
        if append.name == refused and bound.expected != append.expected:
            return problem.version is not None and holds(append.expected, problem.version)
    return False


async def _is_there(append: AgentAppend, vault: Vault) -> bool:
    """Whether the log holds all of the events already."""
    ids = {event.id for event in append.events}
    found = await vault.store.find(await vault.record(*append.name), list(ids))
    return {event.id for event in found} == ids
