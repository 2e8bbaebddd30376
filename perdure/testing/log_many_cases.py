"""Log cases: one append to many agents, some or all of them new. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio

import pytest

from perdure.engine.event import Event
from perdure.engine.log.expected import NO_STREAM
from perdure.engine.log.log import AgentAppend
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, InvalidEvent
from perdure.testing.log_event_cases import OTHER, check_log, some
from perdure.testing.log_rows import LogUnderTest

__all__ = ["CASES"]


async def several_agents_are_written_all_or_none(under: LogUnderTest) -> None:
    """One agent that is not where it was expected refuses the whole append."""
    log = await under.open_log()
    await log.append_events(OTHER, some(1))
    names = [AgentName("tenant", f"agent {number}") for number in range(6)]
    appends = [AgentAppend(name, some(3), NO_STREAM) for name in names]
    with pytest.raises(Conflict) as caught:
        await log.append_many([*appends, AgentAppend(OTHER, some(), 5)])
    assert caught.value.agent == "other"
    assert sum(await check_log(log)) == 1
    done = await log.append_many([*appends, AgentAppend(OTHER, some(), 1)])
    assert [each.version for each in done] == [3] * 6 + [2]
    assert sum(await check_log(log)) == 20


async def no_agent_is_made_for_what_cannot_be_appended(under: LogUnderTest) -> None:
    """The last of many appends is no event: nobody is made for the others."""
    log = await under.open_log()
    names = [AgentName("tenant", f"agent {number}") for number in range(5)]
    broken = AgentAppend(AgentName("tenant", "broken"), [Event("perdure.mine")])
    with pytest.raises(InvalidEvent):
        await log.append_many([*(AgentAppend(name, some()) for name in names), broken])
    assert await log.store.agents([*names, broken.name]) == [None] * 6
    assert sum(await check_log(log)) == 0


async def of_two_who_make_the_same_agents_one_appends(under: LogUnderTest) -> None:
    """From two openings at once, more agents than are made at once; each agent is there once, and the other append has written nothing."""
    log, elsewhere = await under.open_log(), await under.open_log()
    names = [AgentName("tenant", f"agent {number}") for number in range(150)]
    await log.append_events(names[7], some())
    appends = [[AgentAppend(name, some(2), 1 if name == names[7] else NO_STREAM) for name in names] for _ in range(2)]
    results = await asyncio.gather(log.append_many(appends[0]), elsewhere.append_many(appends[1]), return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 1
    (done,) = [result for result in results if isinstance(result, list)]
    assert [each.name for each in done] == names
    assert [each.version for each in done] == [3 if name == names[7] else 2 for name in names]
    assert sum(await check_log(log)) == 301
    for reader in (log, elsewhere):  # whoever lost the race for a row has the winner's key for it
        assert [len(await reader.get_events(name)) for name in names[:9]] == [2] * 7 + [3, 2]


CASES = (
    several_agents_are_written_all_or_none,
    no_agent_is_made_for_what_cannot_be_appended,
    of_two_who_make_the_same_agents_one_appends,
)
