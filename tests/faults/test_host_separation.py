"""A host that is cut off from the log: it stops before its lease ends, others take over, and what it does late changes nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

import perdure
from perdure import config
from tests.faults.separation import Separable, separable
from tests.faults.test_host_faults import AGENTS, HANDLER, LEASE_S, TIMEOUT_S, UNAVAILABLE, World, under_load

ASK_TIMEOUT_S = 2.0


class Divided(World):
    """A world in which one node can be cut off from the log, and from nothing else."""

    line: Separable

    async def node_apart(self, name: str) -> tuple[asyncio.subprocess.Process, str]:
        """A node behind the line, and where it answers."""
        log = self._options.index("--log") + 1
        options = [*self._options[:log], self.line.url, *self._options[log + 1 :]]
        words = ("host", "--node", name, "--handler", HANDLER, "--lease-s", str(LEASE_S), "--address", self.line.address)
        process = await asyncio.create_subprocess_exec(
            *(*self.line.prefix, sys.executable, "-m", "tests.faults.host_process", *words, "--json", *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            address: str = msgspec.json.decode(await process.stdout.readline())["address"]
        self.addresses.append(address)
        return process, address


@pytest.fixture
async def divided(fresh_database: str, tmp_path: Path) -> AsyncIterator[Divided]:
    flags = {"log": fresh_database, "keys": f"file://{tmp_path}/root.key", "bus": "memory://", "cache": "memory://"}
    flags["store"] = f"file://{tmp_path}/snapshots"
    async with separable(fresh_database) as line, perdure.open(settings=config.load(flags), partitions=4) as engine:
        made = Divided(engine, flags, AGENTS)
        made.line = line
        try:
            yield made
        finally:
            await made.end()


async def holds_its_lease(address: str) -> bool:
    """What the node says of itself; one that does not answer serves nobody."""
    place = urlsplit(address)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            try:
                writer.write(f"GET /v1/node HTTP/1.1\r\nhost: {place.netloc}\r\nconnection: close\r\n\r\n".encode())
                _, _, body = (await reader.read()).partition(b"\r\n\r\n")
                return bool(msgspec.json.decode(body)["lease"]) if body else False
            finally:
                writer.close()
    return False


async def test_a_host_cut_off_from_the_log_stops_before_others_take_its_agents(divided: Divided) -> None:
    store = divided.engine.log.store
    await divided.start("recover", "watch")
    apart, address = await divided.node_apart("apart")
    await divided.node("other")
    async with under_load(divided):
        before = await store.count_owned("apart")
        assert before
        assert await holds_its_lease(address)
        await divided.line.cut()
        async with asyncio.timeout(TIMEOUT_S):
            while left := await store.count_owned("apart"):
                # Whenever one of its agents is somebody else's already, it knows that it may not act.
                assert left == before or not await holds_its_lease(address)
                await store.signal().wait(0.02)
        assert not await holds_its_lease(address)
        await divided.all_answer_again()
        # It ends though the log says nothing, even where it had asked something before it was cut off.
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await apart.communicate()
        assert apart.returncode == UNAVAILABLE
        assert b"lost its lease" in said
        await divided.line.heal()
        await divided.all_answer_again()
    await divided.check()
    assert await store.count_owned("other") == AGENTS
