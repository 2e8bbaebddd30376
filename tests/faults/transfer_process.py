"""A process that moves an agent, or takes that back: `python -m tests.faults.transfer_process SOURCE TARGET run|abort AGENT`.

SOURCE, TARGET: folders with `log` and `root.key`. It kills itself where PERDURE_KILL_POINT says.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import perdure
from perdure import config
from perdure.engine.log.records import AgentName
from perdure.testing import kill_points


def settings(folder: Path) -> config.Settings:
    return config.load({"log": f"sqlite:///{folder}/log", "keys": f"file://{folder}/root.key", "training": "off"}, {})


async def main(source: Path, target: Path, what: str, agent: str) -> None:
    name = AgentName("default", agent)
    async with perdure.open(settings=settings(source)) as here, perdure.open(settings=settings(target)) as there:
        if what == "run":
            await here.transfers.run(there, [name])
        else:
            await here.transfers.abort(there, [name])


if __name__ == "__main__":
    kill_points.install_from_environment()
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
