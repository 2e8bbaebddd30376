"""The Redis cache: the kit, and what only Redis can do to a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from perdure.errors import ConfigurationError
from perdure.projections.contract import CachedState, Token
from perdure.projections.redis import RedisCache
from perdure.testing.cache_kit import CacheContract, step, whole

AGENT = ("t", "a")


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[RedisCache]:
    cache = RedisCache(redis_url, prefix=f"test-{uuid4().hex}")
    yield cache
    await cache.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    redis = Redis.from_url(redis_url)
    yield redis
    await redis.aclose()


class TestRedisCache(CacheContract):
    @pytest.fixture
    async def cache(self, redis_url: str) -> AsyncIterator[RedisCache]:
        cache = RedisCache(redis_url, prefix=f"test-{uuid4().hex}")
        yield cache
        await cache.close()


async def test_a_partly_evicted_key_is_a_miss_and_can_be_replaced(cache: RedisCache, redis: Any) -> None:
    await cache.apply([whole(AGENT, Token(1, 0, 5), {b"a": b"1", b"b": b"2"})])
    await redis.hdel(cache.key(*AGENT), "ca")
    assert await cache.get([AGENT]) == [None]
    assert await cache.tokens([AGENT]) == [None]
    assert await cache.apply([step(AGENT, 5, Token(1, 0, 6), {b"a": b"3"}, count=2)]) == [None]
    assert await cache.apply([whole(AGENT, Token(1, 0, 5), {b"a": b"1"})]) == [Token(1, 0, 5)]
    assert await cache.get([AGENT]) == [CachedState(Token(1, 0, 5), {b"a": b"1"})]


@pytest.mark.parametrize("meta", ["", "x", "1:2:3", "1:2:3:x", "1:2:3:9", "-1:2:3:1", "1:2:3:1:1"])
async def test_a_damaged_meta_field_is_a_miss(cache: RedisCache, redis: Any, meta: str) -> None:
    await cache.apply([whole(AGENT, Token(1, 2, 3), {b"a": b"1"})])
    await redis.hset(cache.key(*AGENT), "m", meta)
    assert await cache.get([AGENT]) == [None]
    assert await cache.tokens([AGENT]) == [None]
    if meta != "1:2:3:9":
        assert await cache.token(*AGENT) is None
    assert await cache.apply([whole(AGENT, Token(1, 2, 3), {b"a": b"1"})]) == [Token(1, 2, 3)]


async def test_scripts_that_redis_forgot_are_loaded_again(cache: RedisCache, redis: Any) -> None:
    for version in (1, 2):
        await redis.script_flush()
        writes = [whole(("t", f"a{i}"), Token(1, 0, version), {b"a": b"1"}) for i in range(3)]
        assert await cache.apply(writes) == [write.token for write in writes]
        await redis.script_flush()
        assert await cache.tokens([("t", "a0")]) == [Token(1, 0, version)]


async def test_every_write_sets_the_time_to_live(redis_url: str, redis: Any) -> None:
    cache = RedisCache(redis_url, prefix=f"test-{uuid4().hex}", ttl_s=100)
    await cache.apply([whole(AGENT, Token(1, 0, 1), {b"a": b"1"})])
    await redis.pexpire(cache.key(*AGENT), 50_000)
    await cache.apply([step(AGENT, 1, Token(1, 0, 2), {b"a": b"2"}, count=1)])
    assert 90_000 < await redis.pttl(cache.key(*AGENT)) <= 100_000
    await cache.close()


async def test_without_a_time_to_live_states_stay(redis_url: str, redis: Any) -> None:
    cache = RedisCache(redis_url, prefix=f"test-{uuid4().hex}", ttl_s=None)
    await cache.apply([whole(AGENT, Token(1, 0, 1), {b"a": b"1"})])
    assert await redis.pttl(cache.key(*AGENT)) == -1
    await cache.close()


def test_keys_of_one_agent_share_a_cluster_slot_tag() -> None:
    cache = RedisCache("redis://127.0.0.1:1")
    assert cache.key("acme", "bot-1") == "perdure:{acme/bot-1}:state"
    assert cache.key("a}c", "b/{d") == "perdure:{a%7Dc/b%2F%7Bd}:state"


@pytest.mark.parametrize(("url", "options"), [("http://x", {}), ("redis://x", {"prefix": "a{b"}), ("redis://x", {"ttl_s": 0})])
def test_wrong_settings_are_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RedisCache(url, **options)
