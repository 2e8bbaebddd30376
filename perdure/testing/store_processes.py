"""What the store kit does with processes: writers that race for names beside a reader, and a writer that is killed."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any

from perdure.errors import ObjectNotFound, PerdureError
from perdure.snapshots.store.contract import SnapshotStore

__all__ = ["count_creations", "put_until_killed", "raise_unless"]

Opener = Callable[[], SnapshotStore]

RACERS = 3
AT_ONCE = 8
CHILD_TIMEOUT_S = 60.0
_processes = multiprocessing.get_context("spawn")


async def raise_unless(kind: type[PerdureError], work: Awaitable[object]) -> None:
    """Await what must raise an error of this kind."""
    try:
        result = await work
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected, not {result!r}")


async def count_creations(opener: Opener, names: Sequence[str], *, content_bytes: int) -> dict[str, list[int]]:
    """Processes 1, 2, … put all names at once, each a content of its own number's byte: name → the numbers that were told True."""
    barrier = _processes.Barrier(RACERS + 1)
    ends = [_processes.Pipe(duplex=False) for _ in range(RACERS)]
    children = [_start(_race, opener, list(names), number, content_bytes, barrier, ends[number - 1][1]) for number in range(1, RACERS + 1)]
    try:
        store = opener()
        seen: dict[str, bytes] = {}
        await asyncio.to_thread(barrier.wait, CHILD_TIMEOUT_S)
        while any(child.is_alive() for child in children):
            await _look(store, names, content_bytes, seen)
        await store.close()
        claimed: dict[str, list[int]] = {name: [] for name in names}
        for number, (receiver, _) in enumerate(ends, 1):
            assert receiver.poll(CHILD_TIMEOUT_S), f"process {number} did not report"
            for name in receiver.recv():
                claimed[name].append(number)
        assert all(seen[name] == bytes(claimed[name]) for name in seen), "a reader saw what did not stay"
        return claimed
    finally:
        _end(children)


async def put_until_killed(opener: Opener, *, acknowledged_min: int, before_kill: Callable[[], None] | None = None) -> list[str]:
    """A process puts objects named by their digest until it is killed; the names that it was told to be durable.

    before_kill: what else happens to the store at that moment.
    """
    receiver, sender = _processes.Pipe(duplex=False)
    child = _start(_put_for_ever, opener, sender)
    sender.close()
    names: list[str] = []
    try:
        while len(names) < acknowledged_min:
            assert await asyncio.to_thread(receiver.poll, CHILD_TIMEOUT_S), "the writer does not get on"
            names.append(receiver.recv())
        if before_kill is not None:
            before_kill()
        child.kill()
        child.join(CHILD_TIMEOUT_S)
        # What it sent before its end counts as well.
        while receiver.poll():
            try:
                names.append(receiver.recv())
            except EOFError:
                break
        return names
    finally:
        _end([child])


def _race(opener: Opener, names: list[str], number: int, content_bytes: int, barrier: Barrier, report: Connection) -> None:
    async def run() -> list[str]:
        store = opener()
        await store.facts("nothing")  # whatever is opened at first use is open when the race begins
        barrier.wait(CHILD_TIMEOUT_S)
        content = bytes([number]) * content_bytes
        order = random.sample(names, len(names))
        created = await asyncio.gather(*(store.put(name, content) for name in order))
        await store.close()
        return [name for name, mine in zip(order, created, strict=True) if mine]

    report.send(asyncio.run(run()))


def _put_for_ever(opener: Opener, report: Connection) -> None:
    async def work(store: SnapshotStore) -> None:
        while True:
            content = os.urandom(random.randrange(200_000))  # noqa: S311 - a size, no secret
            name = f"put/{hashlib.sha256(content).hexdigest()}"
            await store.put(name, content)
            report.send(name)  # one write to the kernel: never mixed with that of another task

    async def run() -> None:
        store = opener()
        await asyncio.gather(*(work(store) for _ in range(AT_ONCE)))

    asyncio.run(run())


async def _look(store: SnapshotStore, names: Sequence[str], content_bytes: int, seen: dict[str, bytes]) -> None:
    """Read each name that is there: whole, and what was seen before."""
    for name in names:
        try:
            content = await store.get(name, bytes_max=content_bytes)
        except ObjectNotFound:
            assert name not in seen, f"{name} was there, and is gone"
            continue
        assert len(content) == content_bytes
        assert content == content[:1] * content_bytes
        assert seen.setdefault(name, content[:1]) == content[:1], f"{name} has changed"


def _start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    child = _processes.Process(target=work, args=arguments, daemon=True)
    child.start()
    return child


def _end(children: Sequence[BaseProcess]) -> None:
    for child in children:
        child.join(CHILD_TIMEOUT_S if child.exitcode is None and not child.is_alive() else 0)
        if child.is_alive():
            child.kill()
            child.join(CHILD_TIMEOUT_S)
        child.close()
