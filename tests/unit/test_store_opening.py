"""Which URLs name a store, and what is laid around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure import config, limits
from perdure.errors import ConfigurationError, LimitExceeded, ObjectNotFound, Unavailable
from perdure.snapshots.store import ObjectFacts, open_store
from perdure.snapshots.store.decorators import BoundedStore, MeteredStore, RetriedStore
from perdure.snapshots.store.local import LocalStore


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "file:", "file:relative", "file://server/folder", "file:///folder?sync=no", "ftp://x/y", "s3:", "s3://", "s3:///prefix"),
        *("s3://key:secret@bucket", "s3://bucket?sync=no", "s3://bucket/UPPER", "s3://bucket/../up", "s3://bucket?endpoint=ftp://x"),
        *("s3://bucket?endpoint=127.0.0.1:9000", "s3://bucket?endpoint=http://example.org", "s3://bucket?endpoint=http://a:b@127.0.0.1"),
    ],
)
def test_urls_that_name_no_store_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert caught.value.hint
    assert "secret" not in str(caught.value.as_dict())


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/a/prefix?region=eu-central-1",
        "s3://bucket?endpoint=https://s3.example.org",
        "s3://bucket?endpoint=http://127.0.0.1:9000",
        "s3://bucket?endpoint=http://minio.internal:9000&insecure_http=yes",
    ],
)
async def test_buckets_are_opened_without_reaching_them(url: str) -> None:
    await open_store(url).close()


async def test_an_embedded_log_has_its_snapshots_beside_it_and_a_server_has_none(tmp_path: Path) -> None:
    settings = config.load({"log": f"sqlite:///{tmp_path}/a folder"}, {})
    assert settings.store.value == f"file://{tmp_path}/a%20folder/snapshots"
    store = open_store(str(settings.store.value))
    await store.put("a", b"")
    await store.close()
    assert (tmp_path / "a folder" / "snapshots" / "a").is_file()
    assert config.load({"log": "postgresql://127.0.0.1/x"}, {}).store.value is None
    assert config.load({}, {"PERDURE_STORE": "s3://bucket"}).store.value == "s3://bucket"


class Gate:
    """A store whose puts wait until they are let through. at_once: bytes of the puts that wait now."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.at_once = 0
        self.most = 0

    async def put(self, name: str, content: bytes) -> bool:
        self.at_once += len(content)
        self.most = max(self.most, self.at_once)
        await self.open.wait()
        self.at_once -= len(content)
        return True

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        return b""

    async def facts(self, name: str) -> ObjectFacts | None:
        return None

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        for _ in ():
            yield ObjectFacts("", 0, 0)

    async def delete(self, name: str) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize(("requests_max", "bytes_max", "most"), [(4, 1_000, 400), (100, 250, 200), (100, 50, 100)])
async def test_what_is_under_way_is_bounded_in_requests_and_in_bytes(requests_max: int, bytes_max: int, most: int) -> None:
    gate = Gate()
    store = BoundedStore(gate, requests_max=requests_max, bytes_max=bytes_max)
    waiting = [asyncio.create_task(store.put(f"o{number}", bytes(100))) for number in range(20)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert gate.at_once == most
    gate.open.set()
    assert all(await asyncio.gather(*waiting))
    assert gate.most == most


async def test_a_generous_limit_takes_no_more_room_than_the_object_needs(tmp_path: Path) -> None:
    inner = LocalStore(tmp_path)
    store = BoundedStore(inner, bytes_max=limits.MIB)
    for number in range(8):
        await store.put(f"o{number}", bytes(1_000))
    meter = MeteredStore(inner)
    generous = BoundedStore(meter, bytes_max=limits.MIB)
    contents = await asyncio.gather(*(generous.get(f"o{number}", bytes_max=limits.STORE_OBJECT_BYTES_MAX) for number in range(8)))
    assert [len(content) for content in contents] == [1_000] * 8
    assert meter.operations["facts"].count == 8
    with pytest.raises(ObjectNotFound):
        await generous.get("missing", bytes_max=limits.STORE_OBJECT_BYTES_MAX)
    await store.close()


async def test_callers_who_are_cancelled_leave_their_place_to_others() -> None:
    gate = Gate()
    store = BoundedStore(gate, requests_max=10, bytes_max=100)
    first = [asyncio.create_task(store.put(f"o{number}", bytes(60))) for number in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
    gate.open.set()
    assert await asyncio.wait_for(store.put("last", bytes(100)), 60)


async def test_contents_above_the_bound_are_refused() -> None:
    store = BoundedStore(Gate(), object_bytes_max=10)
    with pytest.raises(LimitExceeded):
        await store.put("a", bytes(11))


class Failing(Gate):
    """Fails a number of times with an error of one kind."""

    def __init__(self, times: int, kind: type[Exception]) -> None:
        super().__init__()
        self.left = times
        self.kind = kind
        self.calls = 0

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise self.kind("failed")
        return b"content"


async def test_repeats_are_bounded_and_only_for_what_may_pass() -> None:
    passing = Failing(2, Unavailable)
    assert await RetriedStore(passing, attempts=3).get("a", bytes_max=10) == b"content"
    lasting = Failing(9, Unavailable)
    with pytest.raises(Unavailable):
        await RetriedStore(lasting, attempts=3).get("a", bytes_max=10)
    assert lasting.calls == 3
    certain = Failing(9, ObjectNotFound)
    with pytest.raises(ObjectNotFound):
        await RetriedStore(certain, attempts=3).get("a", bytes_max=10)
    assert certain.calls == 1


async def test_the_meter_counts_what_passes(tmp_path: Path) -> None:
    store = MeteredStore(LocalStore(tmp_path))
    assert [await store.put("a/b", bytes(100)) for _ in range(2)] == [True, False]
    await store.get("a/b", bytes_max=100)
    with pytest.raises(ObjectNotFound):
        await store.get("a/c", bytes_max=100)
    assert [facts.name async for facts in store.list("")] == ["a/b"]
    await store.delete("a/b")
    assert await store.facts("a/b") is None
    await store.close()
    counted = {name: (operation.count, operation.errors, operation.bytes) for name, operation in store.operations.items()}
    assert counted == {"put": (2, 0, 100), "get": (2, 1, 100), "list": (1, 0, 0), "delete": (1, 0, 0), "facts": (1, 0, 0)}
    assert all(operation.seconds > 0 for operation in store.operations.values())
