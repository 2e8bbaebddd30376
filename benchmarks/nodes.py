"""Nodes and other commands as processes beside a benchmark."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import msgspec

from perdure.recovery.leases import LEASE_S

__all__ = ["end_processes", "start_command", "start_node"]


async def start_command(flags: dict[str, str], *words: str) -> asyncio.subprocess.Process:
    """A `perdure` command with these settings."""
    options = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perdure.cli", *words, *options, "--json", stdout=asyncio.subprocess.PIPE, stderr=None
    )


async def start_node(flags: dict[str, str], name: str, handler: str, *, lease_s: float = LEASE_S) -> tuple[asyncio.subprocess.Process, str]:
    """A node that serves, and its address."""
    process = await start_command(flags, "host", "--node", name, "--handler", handler, "--lease-s", str(lease_s))
    assert process.stdout is not None
    address: str = msgspec.json.decode(await process.stdout.readline())["address"]
    return process, address


async def end_processes(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """Kill those that still run, and wait for the end of all."""
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()
