"""A writer as a process of its own: `python -m tests.faults.writer_process ORDER`, ORDER being an `Order` as JSON.

It prints one JSON line (a `Line`) for each thing that happens, and repeats with the same id whatever may be repeated.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from perdure.engine import steps
from perdure.engine.event import Event
from perdure.engine.log import postgres_append
from perdure.engine.log.contract import LogStore
from perdure.engine.log.log import EventLog
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.records import AgentName
from perdure.engine.log.sqlite import SqliteStore
from perdure.errors import Fenced, Unavailable
from perdure.identifiers import uuid7
from perdure.testing import kill_points
from perdure.testing.log_rows import LogUnderTest
from tests.faults import mutants

RETRY_PAUSE_S = 0.05
PARTITIONS = 2


class Order(msgspec.Struct, kw_only=True):
    """What the process shall do.

    log: a URL, or a folder. count: events; 0 goes on until SIGTERM. own: take ownership of the agents first, from epoch 0. stop_at: the step
    at which the process stops itself (SIGSTOP), as in `append.before`. way: that its appends take, behind
    others or under a lock, as if others wrote all the time. ids: the events' ids, where they are given.
    """

    log: str
    name: str
    agents: tuple[str, ...] = ("agent 0", "agent 1", "agent 2")
    count: int = 0
    workers: int = 4
    own: bool = False
    stop_at: str = ""
    way: Literal["", "behind", "locked"] = ""
    mutant: str = ""
    ids: tuple[UUID, ...] = ()


class Line(msgspec.Struct, omit_defaults=True):
    """One thing that happened. took_s: how long the call took that came to it."""

    what: Literal["ready", "owned", "acknowledged", "unavailable", "fenced"]
    agent: str = ""
    id: UUID | None = None
    version: int = 0
    epoch: int | None = None
    already: bool = False
    took_s: float = 0.0
    error: str = ""


async def open_store(log: str) -> LogStore:
    """The log of a URL or in a folder."""
    if log.startswith("postgresql://"):
        return await PostgresStore.open(log, partitions=PARTITIONS)
    return await SqliteStore.open(Path(log), partitions=PARTITIONS)


def say(line: Line) -> None:
    """Print, with one write that a kill cannot tear."""
    os.write(1, msgspec.json.encode(line) + b"\n")


class Work:
    """The events of one order, taken by several workers."""

    def __init__(self, log: EventLog, order: Order) -> None:
        self.log = log
        self.order = order
        self.stop = asyncio.Event()
        self.epoch: int | None = None
        self._number = 0

    async def run(self) -> None:
        if self.order.own:
            for agent in self.order.agents:
                await self._own(agent)
        await asyncio.gather(*(self._worker() for _ in range(self.order.workers)))

    async def _own(self, agent: str) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                self.epoch = await self.log.take_ownership(AgentName("t", agent), self.order.name, expected_epoch=0)
                say(Line("owned", agent, epoch=self.epoch))
                return
            except Fenced as problem:
                say(Line("fenced", agent, error=problem.code))
                self.stop.set()
            except Unavailable as problem:
                say(Line("unavailable", agent, took_s=time.monotonic() - began, error=problem.code))
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _worker(self) -> None:
        order = self.order
        while not self.stop.is_set() and (not order.count or self._number < order.count):
            number = self._number
            self._number += 1
            id = order.ids[number] if order.ids else uuid7()
            await self._append(order.agents[number % len(order.agents)], Event("worked", data=number, id=id, correlation_id=order.name))

    async def _append(self, agent: str, event: Event) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                done = await self.log.append_event(AgentName("t", agent), event, epoch=self.epoch)
            except Fenced as problem:
                say(Line("fenced", agent, event.id, error=problem.code))
                self.stop.set()
            except Unavailable as problem:
                say(Line("unavailable", agent, event.id, took_s=time.monotonic() - began, error=problem.code))
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                took_s = time.monotonic() - began
                say(Line("acknowledged", agent, event.id, done.version, self.epoch, done.already, took_s))
                return


def stop_at(step: str) -> None:
    """Stop this process where it reaches the step for the first time."""
    reached = False

    def hook(name: str) -> None:
        nonlocal reached
        if name == step and not reached:
            reached = True
            os.kill(os.getpid(), signal.SIGSTOP)

    steps.install(hook)


async def main(order: Order) -> None:
    """Carry out the order."""
    under = LogUnderTest(lambda: open_store(order.log))
    work = Work(await under.open_log(), order)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.stop.set)
    say(Line("ready"))
    await work.run()
    await under.close()


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Order)
    kill_points.install_from_environment()
    if given.stop_at:
        stop_at(given.stop_at)
    if given.way == "behind":
        postgres_append.CROWDED = 0.0
    if given.way == "locked":
        postgres_append.TRIES_MAX = 0
    if given.mutant:
        mutants.BY_NAME[given.mutant]()
    asyncio.run(main(given))
