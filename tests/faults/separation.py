"""Cutting a process off from a server as a failing network does: nothing arrives, nobody is told.

Where the kernel allows it (root on Linux), the process lives in a network namespace of its own, with one line to the server and another to
whoever calls it, and the first line is cut. The namespace lives as long as `cat` reads from this process, so none outlives a test that is
killed. Elsewhere a proxy before the server lets nothing through any more.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from tests.fix_proxy import Proxy

END_S = 60.0
NETWORK = ipaddress.ip_network("198.18.0.0/15")
"""Addresses that are set aside for tests of networks (RFC 2544); they exist in the namespace and on the lines to it."""
LINES = 2
LINE_ADDRESSES = 4
"""A network of each line: itself, its two ends, and all."""


class Separable(Protocol):
    """url: of the server, as the process shall have it. prefix: of the command that starts the process. address: where it shall listen."""

    url: str
    prefix: tuple[str, ...]
    address: str

    async def cut(self) -> None:
        """Nothing reaches the server any more, and nothing comes from it."""

    async def heal(self) -> None:
        """As before; what was sent meanwhile arrives late."""


class _Namespace:
    def __init__(self, holder: int, proxy: Proxy, lines: tuple[str, str], address: str) -> None:
        self.url = proxy.url
        self.prefix: tuple[str, ...] = ("nsenter", "--target", str(holder), "--net")
        self.address = address
        self._line = lines[0]

    async def cut(self) -> None:
        await _run("ip", "link", "set", self._line, "down")

    async def heal(self) -> None:
        await _run("ip", "link", "set", self._line, "up")


class _Proxied:
    def __init__(self, proxy: Proxy) -> None:
        self.url = proxy.url
        self.prefix: tuple[str, ...] = ()
        self.address = "127.0.0.1"
        self._proxy = proxy

    async def cut(self) -> None:
        self._proxy.separate()

    async def heal(self) -> None:
        self._proxy.flow()


@asynccontextmanager
async def separable(url: str) -> AsyncIterator[Separable]:
    """A way to the server of this URL that can be cut."""
    if not await _possible():
        proxy = Proxy(url)
        await proxy.open()
        try:
            yield _Proxied(proxy)
        finally:
            await proxy.shut()
        return
    holder = await asyncio.create_subprocess_exec(
        "unshare", "--net", "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    lines = (f"pd{holder.pid}l", f"pd{holder.pid}c")
    ends = [_ends(holder.pid, number) for number in range(LINES)]
    proxy = Proxy(url, ends[0][0])
    try:
        await _moved(holder.pid)
        for line, (here, there) in zip(lines, ends, strict=True):
            await _lay(holder.pid, line, here, there)
        await _inside(holder.pid, "ip", "link", "set", "lo", "up")
        await proxy.open()
        yield _Namespace(holder.pid, proxy, lines, ends[1][1])
    finally:
        await proxy.shut()
        assert holder.stdin is not None
        holder.stdin.close()
        async with asyncio.timeout(END_S):
            await holder.wait()


def _ends(holder: int, number: int) -> tuple[str, str]:
    """This machine's address on a line and the namespace's. Processes that live at the same time have addresses of their own."""
    lines_of_all = NETWORK.num_addresses // LINE_ADDRESSES
    first = (holder * LINES + number) % lines_of_all * LINE_ADDRESSES
    return str(NETWORK[first + 1]), str(NETWORK[first + 2])


async def _possible() -> bool:
    if sys.platform != "linux" or os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "ip", "link", "add", "pdtry0", "type", "veth", "peer", "name", "pdtry1"), stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


async def _moved(pid: int) -> None:
    """Until the process is in a namespace of its own."""
    async with asyncio.timeout(END_S):
        while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            await asyncio.sleep(0.005)


async def _lay(holder: int, line: str, here: str, there: str) -> None:
    """A line between this machine and the namespace, of two addresses."""
    await _run("ip", "link", "add", line, "type", "veth", "peer", "name", "far" + line[-1], "netns", str(holder))
    await _run("ip", "addr", "add", f"{here}/30", "dev", line)
    await _run("ip", "link", "set", line, "up")
    await _inside(holder, "ip", "addr", "add", f"{there}/30", "dev", "far" + line[-1])
    await _inside(holder, "ip", "link", "set", "far" + line[-1], "up")


async def _inside(holder: int, *command: str) -> None:
    await _run("nsenter", "--target", str(holder), "--net", *command)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, told = await process.communicate()
    assert process.returncode == 0, f"{' '.join(command)}: {told.decode()}"
