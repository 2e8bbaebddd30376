"""Writer processes as tests hold them, and what they were told."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from perdure.testing.history import Acknowledged
from tests.faults.writer_process import Line, Order

WAIT_S = 90.0
"""Until a process that says nothing fails its test."""


class Writer:
    """A running writer process and every line that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[Line] = []
        self._news = asyncio.Event()
        self._ended = False
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(msgspec.json.decode(line, type=Line))
            self._news.set()
        self._ended = True
        self._news.set()

    def of(self, what: str) -> list[Line]:
        """The lines about this."""
        return [line for line in self.lines if line.what == what]

    def acknowledged(self) -> list[Acknowledged]:
        """All that the process was told."""
        return [Acknowledged("t", line.agent, line.id, line.version, line.epoch) for line in self.of("acknowledged") if line.id is not None]

    async def until(self, what: str, count: int = 1, *, since: int = 0, where: Callable[[Line], bool] = lambda _: True) -> list[Line]:
        """Wait for so many lines about this, after the first `since` lines of any kind."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [line for line in self.lines[since:] if line.what == what and where(line)]
                if len(found) >= count:
                    return found
                assert not self._ended, f"the process ended without {count} lines {what!r}: {self.lines[-3:]}"
                self._news.clear()
                await self._news.wait()

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        async with asyncio.timeout(WAIT_S):
            code = await self.process.wait()
            await self._reading
        return code

    async def finish(self) -> None:
        """Ask it to end, and see that it ends well."""
        self.process.terminate()
        assert await self.ended() == 0

    async def kill(self) -> None:
        """SIGKILL, if it lives, and read what it said until then."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


@asynccontextmanager
async def writer(log: str, name: str, *, kill_point: str = "", **order: Any) -> AsyncIterator[Writer]:
    """A writer process of this log."""
    encoded = msgspec.json.encode(Order(log=log, name=name, **order)).decode()
    command = (sys.executable, "-m", "tests.faults.writer_process", encoded)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PERDURE_KILL_POINT": kill_point}
    )
    running = Writer(process)
    try:
        yield running
    finally:
        await running.kill()


def told(writers: Iterable[Writer]) -> list[Acknowledged]:
    """All acknowledgements of these."""
    return [each for one in writers for each in one.acknowledged()]
