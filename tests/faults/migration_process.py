"""`perdure` commands in processes that count the steps they reach, kill or stop themselves there, or are built with a fault.

They are forked from one process that has imported everything, so that a process costs hundredths of a second and a test can have twenty.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import psutil

from perdure.cli.entry import run
from perdure.engine import steps
from tests.faults import migration_mutants

__all__ = ["Forked", "fork"]

PRELOADED: Final = ("__main__", "perdure.recovery.http", "perdure.client.engine", __name__)
POLL_S: Final = 0.02
END_S: Final = 60.0


def _command(words: list[str], said: Connection, hits: str, kill_point: str, stop_point: str, mutant: str, namespace: str) -> None:
    """In the forked process."""
    if namespace:
        _enter(namespace)
    os.dup2(said.fileno(), sys.stdout.fileno())
    os.dup2(os.open(f"{hits}.errors", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    said.close()
    _watch_steps(hits, kill_point, stop_point)
    if mutant:
        migration_mutants.BY_NAME[mutant]()
    sys.exit(run(words))


def _enter(namespace: str) -> None:
    """Live in the network of this process from here on."""
    with open(f"/proc/{namespace}/ns/net", "rb") as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"the network of process {namespace} cannot be entered")


def _watch_steps(hits: str, kill_point: str, stop_point: str) -> None:
    log = os.open(hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    due = {}
    for point, number in ((kill_point, signal.SIGKILL), (stop_point, signal.SIGSTOP)):
        step, _, times = point.partition(":")
        due[step] = (int(times or 1), number)
    seen = Counter[str]()

    def hook(step: str) -> None:
        os.write(log, f"{step}\n".encode())
        if step in due:
            seen[step] += 1
            times, number = due[step]
            if seen[step] == times:
                os.kill(os.getpid(), number)

    steps.install(hook)


class Forked:
    """A running command. said: what it prints, line by line."""

    def __init__(self, process: multiprocessing.process.BaseProcess, said: Connection, hits: Path) -> None:
        self._process = process
        self._connection = said
        self._hits = hits
        self.said = asyncio.StreamReader()
        self._transport: asyncio.ReadTransport | None = None

    async def listen(self) -> None:
        """Read what it prints from now on."""
        pipe = os.fdopen(os.dup(self._connection.fileno()), "rb", 0)
        self._connection.close()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self.said), pipe)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def hits(self) -> Counter[str]:
        """How often it reached each step."""
        return Counter(self._hits.read_text().split()) if self._hits.exists() else Counter()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    async def reached(self, step: str, times: int = 1) -> None:
        """Wait until it has reached the step so often."""
        while self.hits()[step] < times:
            await asyncio.sleep(POLL_S)

    async def stopped(self) -> None:
        """Wait until it stands still."""
        while psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(POLL_S)

    async def ended(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        while (code := self.exit_code) is None:
            await asyncio.sleep(POLL_S)
        return code

    async def end(self) -> None:
        """Kill it where it still runs, and wait for its end."""
        if self.exit_code is None:
            self._process.kill()
        deadline = time.monotonic() + END_S
        while self.exit_code is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        self._process.join(0)
        if self._transport is not None:
            self._transport.close()
        with contextlib.suppress(ValueError):
            self._process.close()


async def fork(
    words: list[str], hits: Path, *, kill_point: str = "", stop_point: str = "", mutant: str = "", namespace: str = ""
) -> Forked:
    """Start a command. kill_point: `step` or `step:times`; stop_point: the same, it stops itself (SIGSTOP). namespace: see `_enter`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    said, say = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(words, say, str(hits), kill_point, stop_point, mutant, namespace), daemon=True)
    await asyncio.to_thread(process.start)
    say.close()
    forked = Forked(process, said, hits)
    await forked.listen()
    return forked
