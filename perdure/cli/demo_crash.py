"""The crash of the demo: a process that appends is killed with SIGKILL, and what it had acknowledged is looked for afterwards."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from typing import Final

from perdure.client.engine import Engine
from perdure.errors import Unavailable

__all__ = ["Crash", "crash", "lost_after"]

ACKNOWLEDGED_BEFORE_KILL: Final = 400
CHILD_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Acknowledged:
    """What the killed process was told."""

    agent: str
    version: int
    id: str


@dataclass(frozen=True)
class Crash:
    """pid and exit status (-9) of the process, and everything that it had acknowledged."""

    pid: int
    status: int
    acknowledged: tuple[Acknowledged, ...]


async def crash(log_url: str, keys_url: str, tenant: str) -> Crash:
    """Start a process that appends, kill it in the middle, and return what it had said until then."""
    command = (sys.executable, "-m", "perdure.cli.demo_child", log_url, keys_url, tenant)
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    lines: list[bytes] = []
    try:
        async with asyncio.timeout(CHILD_TIMEOUT_S):
            while len(lines) < ACKNOWLEDGED_BEFORE_KILL and (line := await child.stdout.readline()):
                lines.append(line)
    except TimeoutError:
        raise Unavailable(f"the demo's writing process acknowledged {len(lines)} events in {CHILD_TIMEOUT_S:.0f} s") from None
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGKILL)
    rest, complaint = await asyncio.gather(child.stdout.read(), child.stderr.read())
    status = await child.wait()
    if status != -signal.SIGKILL:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"the demo's writing process ended by itself: {' '.join(last)}")
    # The kill may cut the last line: without its line feed nobody was told.
    told = [line for line in [*lines, *rest.splitlines(keepends=True)] if line.endswith(b"\n")]
    return Crash(child.pid, status, tuple(_parse(line) for line in told))


def _parse(line: bytes) -> Acknowledged:
    agent, version, id_ = line.decode().split()
    return Acknowledged(agent, int(version), id_)


async def lost_after(engine: Engine, tenant: str, acknowledged: tuple[Acknowledged, ...]) -> tuple[list[Acknowledged], int]:
    """Acknowledged events that are not in the log at their version (none, if all is well), and how many events those agents have."""
    lost: list[Acknowledged] = []
    found = 0
    for agent in sorted({entry.agent for entry in acknowledged}):
        ids = {event.version: str(event.id) async for event in engine.agent(agent, tenant=tenant).events()}
        found += len(ids)
        lost += [entry for entry in acknowledged if entry.agent == agent and ids.get(entry.version) != entry.id]
    return lost, found
