"""A process that rotates: `python -m tests.faults.key_process LOG KEYS tenant|root`. It kills itself where PERDURE_KILL_POINT says."""

from __future__ import annotations

import asyncio
import sys

import perdure
from perdure import limits
from perdure.testing import kill_points


async def main(log: str, keys: str, what: str) -> None:
    limits.REWRAP_PAGE_AGENTS = 4  # type: ignore[misc]
    async with perdure.open(log, keys=keys, create=False) as engine:
        if what == "root":
            await engine.keys.rotate_root_key()
        else:
            await engine.keys.rotate_encryption_key("acme")


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(*sys.argv[1:4]))
