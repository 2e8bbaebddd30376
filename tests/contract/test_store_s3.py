"""The store kit on a real S3 service, and its own failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import pytest

from perdure.errors import ConfigurationError, Denied, LimitExceeded, Unavailable, UnsafeSettings
from perdure.snapshots.store import SnapshotStore, check_create_only, open_store
from perdure.snapshots.store.decorators import MeteredStore, RetriedStore
from perdure.snapshots.store.object import ObjectStore
from perdure.testing.store_kit import PROCESS_CASES, STORE_CASES, Case, StoreUnderTest, name_of
from tests.fix_proxy import Proxy


@pytest.mark.parametrize("case", [*STORE_CASES, *PROCESS_CASES], ids=name_of)
async def test_s3(case: Case, s3_url: str) -> None:
    await case(StoreUnderTest(partial(open_store, s3_url)))


def at_endpoint(url: str, endpoint: str) -> str:
    return urlunsplit(urlsplit(url)._replace(query=urlencode({"endpoint": endpoint})))


def endpoint_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["endpoint"][0]


@pytest.fixture
async def proxied(s3_url: str) -> AsyncIterator[tuple[Proxy, ObjectStore]]:
    """A proxy before the service, and a store behind it that tries everything once."""
    proxy = Proxy(endpoint_of(s3_url))
    await proxy.open()
    parts = urlsplit(s3_url)
    yield proxy, ObjectStore(parts.netloc, parts.path.strip("/"), endpoint=proxy.url, allow_http=True)
    await proxy.shut()


async def test_a_service_that_is_away_is_typed_and_named(proxied: tuple[Proxy, ObjectStore]) -> None:
    proxy, store = proxied
    await store.put("a", b"content")
    await proxy.shut()
    for work in (store.put("b", b""), store.get("a", bytes_max=10), store.facts("a"), store.delete("a"), anext(store.list(""))):
        with pytest.raises(Unavailable, match="perdure") as caught:
            await work
        assert caught.value.retryable


async def test_what_fails_for_a_while_is_repeated(proxied: tuple[Proxy, ObjectStore]) -> None:
    proxy, inner = proxied
    attempts = MeteredStore(inner)
    store = RetriedStore(attempts)
    await store.put("a", b"content")
    await proxy.shut()
    waiting = [asyncio.create_task(work) for work in (store.put("b", b"new"), store.get("a", bytes_max=10), _names(store, ""))]
    while not all(attempts.operations[name].errors for name in ("put", "get", "list")):
        await asyncio.sleep(0.01)
    await proxy.open()
    created, content, names = await asyncio.gather(*waiting)
    assert (created, content) == (True, b"content")
    assert "a" in names


async def test_a_put_whose_answer_is_lost_stands_once(proxied: tuple[Proxy, ObjectStore]) -> None:
    proxy, inner = proxied
    store = RetriedStore(inner)
    proxy.cut_reply_to(b"PUT ")
    created = await store.put("a", b"content")
    assert proxy.cut_done.is_set()
    assert created is False, "the repetition finds what the first attempt has written"
    assert await store.get("a", bytes_max=10) == b"content"


async def test_a_line_that_is_cut_again_and_again_loses_and_changes_nothing(s3_url: str) -> None:
    proxy = Proxy(endpoint_of(s3_url))
    await proxy.open()
    store = open_store(at_endpoint(s3_url, proxy.url))
    try:
        contents = {f"a/{number:03d}": bytes([number]) * 50_000 for number in range(60)}
        for batch in range(0, len(contents), 10):
            names = list(contents)[batch : batch + 10]
            waiting = [asyncio.create_task(store.put(name, contents[name])) for name in names]
            while store.operations["put"].count < batch + len(names) or not any(task.done() for task in waiting):
                await asyncio.sleep(0.001)
            proxy.cut()  # in the middle of the others
            await asyncio.gather(*waiting)
        found = asyncio.create_task(_names(store, "a/"))
        await asyncio.sleep(0.001)
        proxy.cut()
        assert await found == list(contents)
        for name, content in contents.items():
            assert await store.get(name, bytes_max=len(content)) == content
    finally:
        await proxy.shut()


async def test_an_object_above_the_wanted_size_is_not_read(proxied: tuple[Proxy, ObjectStore]) -> None:
    _, store = proxied
    await store.put("big", bytes(5_000_000))
    with pytest.raises(LimitExceeded):
        await store.get("big", bytes_max=4_999_999)


async def test_a_bucket_that_is_not_there_is_no_absent_object(s3_url: str) -> None:
    store = ObjectStore("no-such-bucket", endpoint=endpoint_of(s3_url), allow_http=True)
    for work in (store.put("a", b""), store.get("a", bytes_max=10), anext(store.list(""))):
        with pytest.raises(ConfigurationError, match="no-such-bucket"):
            await work


class _Denying(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b"<Error><Code>AccessDenied</Code></Error>"
        self.send_response(403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The endpoint of a small service of the test's own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


async def test_a_service_that_denies_is_typed_with_a_hint(s3_url: str) -> None:
    with serving(_Denying) as endpoint:
        store = open_store(at_endpoint(s3_url, endpoint))
        for work in (store.put("a", b""), store.get("a", bytes_max=10), store.facts("a"), store.delete("a")):
            with pytest.raises(Denied) as caught:
                await work
            assert "AWS_ACCESS_KEY_ID" in caught.value.hint


class _Replacing(BaseHTTPRequestHandler):
    """An S3 service that overlooks the condition of a conditional write."""

    kept: dict[str, bytes]

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.kept[self.path])

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        headers = {"content-length": str(len(body)), "etag": '"1"', "last-modified": "Sat, 21 Nov 2026 12:00:00 GMT"}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


async def test_a_service_that_replaces_objects_is_found_out(s3_url: str) -> None:
    store = open_store(s3_url)
    await check_create_only(store)
    await check_create_only(store)
    with serving(type("Replacing", (_Replacing,), {"kept": {}})) as endpoint:
        with pytest.raises(UnsafeSettings) as caught:
            await check_create_only(open_store(at_endpoint(s3_url, endpoint)))
        assert "If-None-Match" in caught.value.hint


async def _names(store: SnapshotStore, prefix: str) -> list[str]:
    return [facts.name async for facts in store.list(prefix)]
