"""What a driver answers: one JSON object a line comes in, one goes out. `python -m benchmarks.peers.NAME.driver JSON`.

Of the standard library alone, so that it runs in the environment of any peer. A driver wraps a product's public API; the load is made here, the same
for all. The first line a driver says is `{"ready": {version, settings}}`; what fails is answered `{"error": …}`, and the driver goes on.

    {"do": "streams", "callers": 32}                                      make the streams that `append` uses, each with its first message
    {"do": "append", "callers": 32, "duration_s": 1, "payload": "real"}   each caller appends to its streams in turns, one after another
    {"do": "store", "first": 0, "last": 20, "prefix": "x"}                write these conversations, message by message
    {"do": "fill", "stream": "long", "count": 5000}                       one long conversation, as fast as the product can
    {"do": "load", "stream": "long", "count": 5000, "duration_s": 1}      the newest state again and again, at this length
                                                                          (and "cold": true, with nothing at hand; "own": true, all of
                                                                          it plain values that nobody else holds)
    {"do": "replay"}                                                      every event out of the store and into states
    {"do": "settle"}                                                      what the product does now and then, do it now
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers.histogram import Histogram

__all__ = ["STREAMS_PER_CALLER", "Driver", "Message", "SyncDriver", "serve"]

Message = dict[str, Any]
START_TIMEOUT_S = 60.0
"""Until all threads of a load are there."""
STREAMS_PER_CALLER = 2
"""A caller has one append on its way, and goes from one of its streams to the other."""


class Driver(ABC):
    """One side. given: `url` (Postgres) or `folder` (embedded), `variant`, `payloads` (a file)."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.url: str = given.get("url", "")
        self.folder = Path(given.get("folder", "."))
        self.variant: str = given.get("variant", "")
        found = json.loads(Path(given["payloads"]).read_text())
        self.messages: dict[str, list[Message]] = {name: found[name] for name in ("synthetic", "real")}
        self.conversations: list[list[Message]] = found["conversations"]

    @abstractmethod
    async def open(self) -> dict[str, Any]:
        """Make tables and connections; `version` and `settings` of what runs here."""

    @abstractmethod
    async def append(self, stream: str, message: Message) -> None:
        """Add one message to a stream, durably, at the version it is known to have where the product can check that."""

    async def fill(self, stream: str, messages: list[Message]) -> None:
        """Write a conversation, in the fewest steps that the product offers."""
        for message in messages:
            await self.append(stream, message)

    @abstractmethod
    async def load(self, stream: str) -> int:
        """Read the newest state, as a user who goes on with the conversation; how many messages it holds."""

    async def load_cold(self, stream: str) -> int:
        """The same, with nothing at hand from before. Products that keep nothing need not override it."""
        return await self.load(stream)

    async def load_own(self, stream: str) -> int:
        """The same, as plain values that the caller may change. Products that hand out nothing else need not override it."""
        return await self.load(stream)

    async def replay(self) -> int:
        """Read every event and fold it; how many there were. Of products that can."""
        raise NotImplementedError(f"{type(self).__name__} has no way to read every event")

    async def settle(self) -> None:  # noqa: B027 - most have nothing to do
        """Training, compaction, whatever the product does by itself from time to time."""

    async def close(self) -> None:  # noqa: B027
        """Leave nothing open."""


class SyncDriver(Driver):
    """A side whose product blocks: its callers are threads."""

    @abstractmethod
    def append_now(self, stream: str, message: Message) -> None:
        """As `append`, blocking."""

    async def append(self, stream: str, message: Message) -> None:
        """Blocks, too: for the loads that have one caller."""
        self.append_now(stream, message)


def serve(make: Callable[[dict[str, Any]], Driver]) -> None:
    """Run a driver until its stdin ends. In uvloop where it is installed."""
    driver = _serve(make(json.loads(sys.argv[1])))
    try:
        import uvloop
    except ImportError:
        asyncio.run(driver)
    else:
        uvloop.run(driver)


async def _serve(driver: Driver) -> None:
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a product prints goes to stderr
    about = await driver.open()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    print(json.dumps({"ready": about}), file=say, flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _answer(driver, json.loads(line))), file=say, flush=True)
    finally:
        await driver.close()


async def _answer(driver: Driver, request: dict[str, Any]) -> dict[str, Any]:
    work = _REQUESTS[request.pop("do")]
    try:
        return await work(driver, **request)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _stream(caller: int, turn: int) -> str:
    return f"caller-{caller}-{turn % STREAMS_PER_CALLER}"


async def _streams(driver: Driver, callers: int) -> dict[str, Any]:
    message = driver.messages["synthetic"][0]

    async def make(caller: int) -> None:
        for turn in range(STREAMS_PER_CALLER):
            await driver.append(_stream(caller, turn), message)

    if isinstance(driver, SyncDriver):
        for caller in range(callers):
            await make(caller)
    else:
        await asyncio.gather(*(make(caller) for caller in range(callers)))
    return {"streams": callers * STREAMS_PER_CALLER}


async def _append(driver: Driver, callers: int, duration_s: float, payload: str = "synthetic") -> dict[str, Any]:
    messages = driver.messages[payload]
    load = _threads if isinstance(driver, SyncDriver) else _tasks
    found, began = await load(driver, callers, duration_s, messages)
    return _measured(found, time.perf_counter() - began)


def _measured(found: Histogram, took_s: float) -> dict[str, Any]:
    return {"done": found.total, "seconds": took_s, "latency": found.encoded()}


async def _tasks(driver: Driver, callers: int, duration_s: float, messages: list[Message]) -> tuple[Histogram, float]:
    """What was found, and when it began."""
    found, began = Histogram(), time.perf_counter()
    end = began + duration_s

    async def call(caller: int) -> None:
        before, turn = time.perf_counter(), 0
        while not turn or before < end:  # once at least, however late it gets its turn
            await driver.append(_stream(caller, turn), messages[(caller + turn * callers) % len(messages)])
            after = time.perf_counter()
            found.add(after - before)
            before, turn = after, turn + 1

    await asyncio.gather(*(call(caller) for caller in range(callers)))
    return found, began


async def _threads(driver: Driver, callers: int, duration_s: float, messages: list[Message]) -> tuple[Histogram, float]:
    """As `_tasks`. It begins when all threads are there: starting hundreds of them is nothing that a product has to do with."""
    assert isinstance(driver, SyncDriver)
    found, latch = Histogram(), threading.Lock()
    starts: list[float] = []
    line = threading.Barrier(callers, lambda: starts.append(time.perf_counter()))

    def call(caller: int) -> None:
        own = Histogram()
        line.wait(START_TIMEOUT_S)
        end = starts[0] + duration_s
        before, turn = time.perf_counter(), 0
        while not turn or before < end:
            driver.append_now(_stream(caller, turn), messages[(caller + turn * callers) % len(messages)])
            after = time.perf_counter()
            own.add(after - before)
            before, turn = after, turn + 1
        with latch:
            found.merge(own)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(callers) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, call, caller) for caller in range(callers)))
    return found, starts[0]


async def _store(driver: Driver, first: int, last: int, prefix: str) -> dict[str, Any]:
    began, written = time.perf_counter(), 0
    for number, conversation in enumerate(driver.conversations[first:last]):
        for message in conversation:
            await driver.append(f"{prefix}-{number}", message)
            written += 1
    return {"messages": written, "seconds": time.perf_counter() - began}


async def _fill(driver: Driver, stream: str, count: int) -> dict[str, Any]:
    messages = driver.messages["real"]
    began = time.perf_counter()
    await driver.fill(stream, [messages[number % len(messages)] for number in range(count)])
    return {"messages": count, "seconds": time.perf_counter() - began}


async def _load(driver: Driver, stream: str, count: int, duration_s: float, cold: bool = False, own: bool = False) -> dict[str, Any]:
    found, load = Histogram(), driver.load_cold if cold else driver.load_own if own else driver.load
    if (held := await load(stream)) != count:  # the first is the warm-up
        raise ValueError(f"{stream} should hold {count} messages, not {held}")
    began = before = time.perf_counter()
    while not found.counts or before < began + duration_s:
        await load(stream)
        after = time.perf_counter()
        found.add(after - before)
        before = after
    return _measured(found, before - began)


async def _replay(driver: Driver) -> dict[str, Any]:
    began = time.perf_counter()
    events = await driver.replay()
    return {"events": events, "seconds": time.perf_counter() - began}


async def _settle(driver: Driver) -> dict[str, Any]:
    await driver.settle()
    return {}


_REQUESTS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "streams": _streams,
    "append": _append,
    "store": _store,
    "fill": _fill,
    "load": _load,
    "replay": _replay,
    "settle": _settle,
}
