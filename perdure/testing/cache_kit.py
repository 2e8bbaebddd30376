"""The conformance kit of state caches: what every `StateCache` must do, as tests.

A backend's test subclasses `CacheContract` and gives a fixture `cache` that is empty or shared (each test uses agents of its own)::

    class TestMyCache(CacheContract):
        @pytest.fixture
        async def cache(self): ...
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from perdure.projections.contract import CachedState, CellWrite, StateCache, Token
from perdure.testing.cache_build_cases import CacheBuildCases, step, whole

__all__ = ["CacheContract", "step", "whole"]


class CacheContract(CacheBuildCases):
    """Subclass and give the fixture `cache`."""

    @pytest.fixture
    def cache(self) -> StateCache:
        """The cache under test."""
        raise NotImplementedError

    @pytest.fixture
    def agent(self) -> tuple[str, str]:
        """A (tenant, agent) that no other test uses."""
        return f"tenant-{uuid4().hex}", "agent"

    async def test_unknown_agents_are_misses(self, cache: StateCache, agent: tuple[str, str]) -> None:
        assert await cache.tokens([agent, ("other", "agent")]) == [None, None]
        assert await cache.token(*agent) is None
        assert await cache.get([agent]) == [None]

    async def test_empty_calls_do_nothing(self, cache: StateCache) -> None:
        assert await cache.tokens([]) == []
        assert await cache.get([]) == []
        assert await cache.apply([]) == []
        await cache.remove([])

    async def test_a_whole_write_is_read_back(self, cache: StateCache, agent: tuple[str, str]) -> None:
        token = Token(1, 2, 3)
        cells = {b"a": b"\x00\xff", b"m": b"looks like meta", b"": b"no name"}
        assert await cache.apply([whole(agent, token, cells)]) == [token]
        assert await cache.get([agent]) == [CachedState(token, cells)]
        assert await cache.tokens([agent]) == [token]
        assert await cache.token(*agent) == token

    async def test_a_state_without_cells_is_no_miss(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {})])
        assert await cache.get([agent]) == [CachedState(Token(1, 0, 1), {})]

    async def test_a_step_puts_and_removes_cells(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {b"a": b"1", b"b": b"2"})])
        write = step(agent, 1, Token(1, 0, 4), {b"a": b"11", b"c": b"3"}, remove=[b"b", b"never there"], count=2)
        assert await cache.apply([write]) == [Token(1, 0, 4)]
        assert await cache.get([agent]) == [CachedState(Token(1, 0, 4), {b"a": b"11", b"c": b"3"})]

    async def test_a_stale_write_changes_nothing_and_tells_the_newer_token(self, cache: StateCache, agent: tuple[str, str]) -> None:
        new = Token(1, 0, 5)
        await cache.apply([whole(agent, new, {b"a": b"new"})])
        stale = [whole(agent, Token(1, 0, 4), {b"a": b"old"}), step(agent, 3, Token(1, 0, 4), {b"a": b"old"}, count=1)]
        assert await cache.apply(stale) == [new, new]
        assert await cache.get([agent]) == [CachedState(new, {b"a": b"new"})]

    async def test_the_same_write_twice_is_applied_once(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {b"a": b"1"})])
        write = step(agent, 1, Token(1, 0, 2), {b"b": b"2"}, count=2)
        assert await cache.apply([write, write]) == [write.token, write.token]
        assert await cache.get([agent]) == [CachedState(write.token, {b"a": b"1", b"b": b"2"})]

    async def test_a_gap_changes_nothing_and_tells_the_older_token(self, cache: StateCache, agent: tuple[str, str]) -> None:
        old = Token(1, 0, 5)
        await cache.apply([whole(agent, old, {b"a": b"1"})])
        assert await cache.apply([step(agent, 7, Token(1, 0, 8), {b"a": b"8"}, count=1)]) == [old]
        assert await cache.get([agent]) == [CachedState(old, {b"a": b"1"})]

    async def test_a_step_on_nothing_is_a_gap(self, cache: StateCache, agent: tuple[str, str]) -> None:
        assert await cache.apply([step(agent, 1, Token(1, 0, 2), {b"a": b"1"}, count=1)]) == [None]
        assert await cache.get([agent]) == [None]

    async def test_a_step_may_raise_the_epoch(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 1, 1), {b"a": b"1"})])
        assert await cache.apply([step(agent, 1, Token(1, 2, 2), {b"a": b"2"}, count=1)]) == [Token(1, 2, 2)]

    async def test_an_older_epoch_is_stale_whatever_its_version(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 3, 5), {b"a": b"1"})])
        fenced = [step(agent, 5, Token(1, 2, 6), {b"a": b"x"}, count=1), whole(agent, Token(1, 2, 99), {b"a": b"x"})]
        assert await cache.apply(fenced) == [Token(1, 3, 5)] * 2

    async def test_a_new_generation_replaces_whole_but_never_steps(self, cache: StateCache, agent: tuple[str, str]) -> None:
        old = Token(1, 5, 9)
        await cache.apply([whole(agent, old, {b"a": b"1", b"b": b"2"})])
        assert await cache.apply([step(agent, 9, Token(2, 0, 10), {b"a": b"x"}, count=2)]) == [old]
        assert await cache.apply([whole(agent, Token(2, 0, 3), {b"z": b"9"})]) == [Token(2, 0, 3)]
        assert await cache.get([agent]) == [CachedState(Token(2, 0, 3), {b"z": b"9"})]

    async def test_a_step_that_does_not_add_up_leaves_a_miss(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {b"a": b"1"})])
        assert await cache.apply([step(agent, 1, Token(1, 0, 2), {b"b": b"2"}, count=5)]) == [None]
        assert await cache.tokens([agent]) == [None]
        assert await cache.get([agent]) == [None]

    async def test_removed_agents_are_misses_and_neighbours_stay(self, cache: StateCache, agent: tuple[str, str]) -> None:
        neighbour = (agent[0], "neighbour")
        await cache.apply([whole(each, Token(1, 0, 1), {b"a": b"1"}) for each in (agent, neighbour)])
        await cache.remove([agent])
        assert await cache.tokens([agent, neighbour]) == [None, Token(1, 0, 1)]

    async def test_it_tells_what_it_holds(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {b"a": b"x" * 100})])
        facts = await cache.statistics()
        assert facts.entries >= 1
        assert facts.bytes >= 100
        assert min(facts.evicted, facts.expired) >= 0

    async def test_names_never_run_together(self, cache: StateCache, agent: tuple[str, str]) -> None:
        base = agent[0]
        names = [(base, "a/b"), (base + "/a", "b"), (base, "a}b"), (base, "a%2Fb"), (base, "ä b"), (base, "{a")]
        await cache.apply([whole(name, Token(1, 0, 1), {b"i": str(i).encode()}) for i, name in enumerate(names)])
        states = await cache.get(names)
        assert [state and state.cells[b"i"] for state in states] == [str(i).encode() for i in range(len(names))]

    async def test_twenty_thousand_cells_are_written_and_changed(self, cache: StateCache, agent: tuple[str, str]) -> None:
        cells = {f"cell-{i}".encode(): b"x" * 10 for i in range(20_000)}
        assert await cache.apply([whole(agent, Token(1, 0, 1), cells)]) == [Token(1, 0, 1)]
        names = list(cells)
        write = step(agent, 1, Token(1, 0, 2), dict.fromkeys(names[:9999], b"y"), remove=names[9_999:], count=9_999)
        assert await cache.apply([write]) == [Token(1, 0, 2)]
        assert await cache.get([agent]) == [CachedState(Token(1, 0, 2), dict.fromkeys(names[:9999], b"y"))]

    async def test_many_agents_in_one_call_keep_their_order(self, cache: StateCache, agent: tuple[str, str]) -> None:
        agents = [(agent[0], f"agent-{i}") for i in range(1_200)]
        writes = [whole(each, Token(1, 0, i + 1), {b"i": str(i).encode()}) for i, each in enumerate(agents)]
        assert await cache.apply(writes) == [write.token for write in writes]
        assert await cache.tokens(agents) == [write.token for write in writes]
        assert [state and state.token.version for state in await cache.get(agents)] == list(range(1, 1_201))

    async def test_several_steps_of_one_agent_in_one_call_follow_each_other(self, cache: StateCache, agent: tuple[str, str]) -> None:
        writes: list[CellWrite] = [whole(agent, Token(1, 0, 1), {b"a": b"1"})]
        writes += [step(agent, v, Token(1, 0, v + 1), {b"a": str(v + 1).encode()}, count=1) for v in range(1, 50)]
        assert await cache.apply(writes) == [write.token for write in writes]

    async def test_racing_writers_never_go_back_and_never_mix(self, cache: StateCache, agent: tuple[str, str]) -> None:
        seen: list[Token] = []

        async def write(version: int) -> None:
            mark = str(version).encode()
            cells = {f"{version % 3}-{i}".encode(): mark for i in range(version % 7 + 1)}
            token = (await cache.apply([whole(agent, Token(1, 0, version), cells)]))[0]
            assert token is not None
            assert token.version >= version
            state = (await cache.get([agent]))[0]
            assert state is not None
            assert set(state.cells.values()) == {str(state.token.version).encode()}
            seen.append(state.token)

        await asyncio.gather(*(write(version) for version in range(1, 60)))
        final: Any = (await cache.tokens([agent]))[0]
        assert final.version == 59
        assert max(seen) == final

    async def test_what_was_read_does_not_change_under_the_reader(self, cache: StateCache, agent: tuple[str, str]) -> None:
        await cache.apply([whole(agent, Token(1, 0, 1), {b"a": b"1"})])
        state = (await cache.get([agent]))[0]
        await cache.apply([step(agent, 1, Token(1, 0, 2), {b"a": b"2"}, count=1)])
        assert state == CachedState(Token(1, 0, 1), {b"a": b"1"})
