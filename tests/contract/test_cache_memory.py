"""The memory cache: the kit, and its bounds."""

from __future__ import annotations

import pytest

from perdure.projections.contract import Token
from perdure.projections.memory import MemoryCache
from perdure.testing.cache_kit import CacheContract, step, whole


class TestMemoryCache(CacheContract):
    @pytest.fixture
    def cache(self) -> MemoryCache:
        return MemoryCache()


async def test_the_least_recently_used_agent_is_forgotten_first() -> None:
    cache = MemoryCache(agents_max=2)
    first, second, third = (("t", name) for name in "abc")
    await cache.apply([whole(first, Token(1, 0, 1), {b"x": b"1"}), whole(second, Token(1, 0, 1), {b"x": b"1"})])
    await cache.get([first])
    await cache.apply([whole(third, Token(1, 0, 1), {b"x": b"1"})])
    assert [token is not None for token in await cache.tokens([first, second, third])] == [True, False, True]


async def test_bytes_are_counted_exactly_and_bounded() -> None:
    cache = MemoryCache(bytes_max=100)
    agent = ("t", "a")
    await cache.apply([whole(agent, Token(1, 0, 1), {b"ab": b"1234", b"c": b"5"})])
    assert cache.size_bytes == 8
    await cache.apply([step(agent, 1, Token(1, 0, 2), {b"ab": b"1", b"d": b"22"}, remove=[b"c"], count=2)])
    assert cache.size_bytes == 6
    await cache.apply([whole(("t", "big"), Token(1, 0, 1), {b"a": b"x" * 98})])
    assert cache.size_bytes == 99
    assert len(cache) == 1
    await cache.apply([whole(("t", "too big"), Token(1, 0, 1), {b"a": b"x" * 200})])
    assert cache.size_bytes == 0
    assert len(cache) == 0
