"""Sides that are compared: each a driver's process on a database or in a folder of its own; and pairs of runs that alternate between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from benchmarks import payloads
from benchmarks.measuring import median
from benchmarks.peers.catalogue import OURS, SideFacts
from benchmarks.peers.environments import PeerUnavailable, command
from benchmarks.peers.histogram import Histogram
from benchmarks.report import note
from benchmarks.servers import fresh_database
from benchmarks.settings import Settings

__all__ = ["Beside", "Load", "Pairs", "Side", "rounds", "sides"]

READY_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 120.0
"""On top of how long a request is meant to work."""
END_TIMEOUT_S = 20.0
LINE_BYTES_MAX = 16 * 1024 * 1024


_RELATION_BYTES = """SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"""


class Load(NamedTuple):
    """What a loop of requests found."""

    per_s: float
    latency: Histogram


class Pairs(NamedTuple):
    """Ratios of neighbouring runs of two sides, ours to the other's."""

    ratio: float
    least: float
    most: float
    ours: float
    theirs: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> Pairs:
        """Medians of pairs (ours, theirs), and the spread of their ratios."""
        found = list(pairs)
        ratios = [ours / theirs for ours, theirs in found]
        return cls(median(ratios), min(ratios), max(ratios), median([each[0] for each in found]), median([each[1] for each in found]))

    def shown(self) -> dict[str, float]:
        """Rounded, as details hold it."""
        return {name: float(f"{value:.4g}") for name, value in self._asdict().items()}


class Side:
    """A running driver. about: its version and settings, as it tells them."""

    def __init__(self, facts: SideFacts, process: asyncio.subprocess.Process, given: dict[str, Any]) -> None:
        self.facts = facts
        self.given = given
        self.about: dict[str, Any] = {}
        self._process = process

    async def ask(self, do: str, *, meant_s: float = 0.0, **request: Any) -> dict[str, Any]:
        """One request and its answer. Raises PeerUnavailable when the driver fails, ends or does not answer in time."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            await self._process.stdin.drain()
        return await self._answer(ANSWER_TIMEOUT_S + 3 * meant_s)

    async def ready(self) -> None:
        """Wait until it says what it is."""
        self.about = (await self._answer(READY_TIMEOUT_S))["ready"]

    async def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise self._failed(f"no answer in {timeout_s:.0f} s") from None
        if not line:
            raise self._failed(f"its driver ended with {await self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer

    def _failed(self, reason: str) -> Exception:
        """A peer's failure is a missing cell; our own ends the benchmark."""
        kind = RuntimeError if self.facts in OURS.values() else PeerUnavailable
        return kind(f"{self.facts.name}: {reason}")

    async def append(self, callers: int, duration_s: float, payload: str = "synthetic") -> Load:
        """Appends of so many callers, one after another each."""
        return _load(await self.ask("append", meant_s=duration_s, callers=callers, duration_s=duration_s, payload=payload))

    async def load(self, stream: str, count: int, duration_s: float, **options: bool) -> Load:
        """Reads of the newest state, one after another."""
        return _load(await self.ask("load", meant_s=duration_s, stream=stream, count=count, duration_s=duration_s, **options))

    async def end(self) -> None:
        """Let it close; kill it when it does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _load(answer: dict[str, Any]) -> Load:
    return Load(answer["done"] / answer["seconds"], Histogram.decode(answer["latency"]))


async def _start(facts: SideFacts, given: dict[str, Any]) -> Side:
    program, variables = await asyncio.to_thread(command, facts.peer)
    process = await asyncio.create_subprocess_exec(
        *(*program, json.dumps(given)),
        cwd=given["folder"],
        env=variables | {"PERDURE_TRAINING": "off"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    side = Side(facts, process, given)
    try:
        await side.ready()
    except BaseException:
        await side.end()
        raise
    return side


@asynccontextmanager
async def _side(facts: SideFacts, postgres_url: str, folder: Path) -> AsyncIterator[Side]:
    """A driver on a new database or in a new folder; both are gone afterwards. folder: where the payloads are."""
    async with AsyncExitStack() as stack:
        given: dict[str, Any] = {"variant": facts.variant, "payloads": str(folder / "payloads.json")}
        given["folder"] = tempfile.mkdtemp(prefix=f"{facts.name}-", dir=folder)
        stack.callback(shutil.rmtree, given["folder"], ignore_errors=True)
        if not facts.embedded:
            given["url"] = stack.enter_context(fresh_database(postgres_url))
        started = await _start(facts, given)
        stack.push_async_callback(started.end)
        yield started


class Beside:
    """A benchmark that compares: what it found, and for each peer that could not be measured why."""

    def __init__(self, settings: Settings, postgres_url: str, folder: Path, conversations: list[Any] | None = None) -> None:
        self.settings = settings
        self.postgres_url = postgres_url
        self.folder = folder
        self.conversations = payloads.write(folder / "payloads.json", conversations)
        self.found: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self.about: dict[str, Any] = {}

    def side(self, facts: SideFacts) -> AbstractAsyncContextManager[Side]:
        """A side's driver on a new database, or in a new folder."""
        return _side(facts, self.postgres_url, self.folder)

    def ours(self, variant: str = "postgres") -> AbstractAsyncContextManager[Side]:
        """perdure's."""
        return self.side(OURS[variant])

    async def peers(self, wanted: Iterable[SideFacts], work: Callable[[Side], Awaitable[None]]) -> None:
        """Measure each peer. What one cannot do, or where it cannot be had, is a missing cell with its reason, never the end."""
        for facts in wanted:
            if not self.settings.peers and not facts.limit:
                self.missing[facts.name] = "peers were not asked for"
                continue
            note(f"  beside {facts.title}")
            try:
                async with self.side(facts) as peer:
                    self.tell(peer)
                    await work(peer)
            except (PeerUnavailable, OSError, ValueError, psycopg.Error) as problem:
                note(f"  missing: {problem}")
                self.missing[facts.name] = str(problem)

    async def stored_bytes(self, side: Side) -> int:
        """What a side's tables and indexes take by now, or its files once their write-ahead logs are worked in."""
        return await asyncio.to_thread(_stored_bytes, side.given)

    def tell(self, side: Side) -> None:
        """Note what a side is, for the page."""
        self.about[side.facts.name] = {"title": side.facts.title, **side.about, "lacks": list(side.facts.lacks)}


def _stored_bytes(given: dict[str, Any]) -> int:
    if "url" in given:
        with psycopg.connect(given["url"]) as connection:
            row = connection.execute(_RELATION_BYTES).fetchone()
            assert row is not None
            return int(row[0])
    files = sorted(Path(given["folder"]).rglob("*.db"))
    for file in files:
        with contextlib.closing(sqlite3.connect(file, timeout=10)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return sum(file.stat().st_size for file in files)


async def rounds(count: int, ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]]) -> Pairs:
    """So many pairs, each side first in turns: what else the machine does weighs on both."""
    pairs = []
    for number in range(count):
        if number % 2:
            second = await theirs()
            pairs.append((await ours(), second))
        else:
            first = await ours()
            pairs.append((first, await theirs()))
    return Pairs.of(pairs)


@asynccontextmanager
async def sides(settings: Settings, postgres_url: str) -> AsyncIterator[Beside]:
    """What a comparing benchmark works with, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder:
        yield Beside(settings, postgres_url, Path(folder))
