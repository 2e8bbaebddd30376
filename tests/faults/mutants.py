"""Builds with a fault put in, to prove that the checks see such faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from perdure.engine.log import decide
from perdure.engine.log.contract import Proposal
from perdure.engine.log.decide import Item, Outcome
from perdure.engine.log.postgres import PostgresStore
from perdure.engine.log.postgres_append import Appender
from perdure.engine.log.records import Position

COMMIT_S = 0.02
"""How long a commit takes where it is acknowledged before."""

_commits: set[asyncio.Task[Any]] = set()


def drop_the_epoch_check() -> None:
    """Every append passes as if it claimed no epoch."""
    real = decide._Planner._refusal

    def refusal(self: Any, number: int, item: Item) -> Outcome | None:
        return real(self, number, msgspec.structs.replace(item, epoch=None))

    decide._Planner._refusal = refusal  # type: ignore[method-assign]


def acknowledge_early() -> None:
    """An append is acknowledged when it has been decided; it is written behind that."""
    real = PostgresStore.append

    async def append(self: PostgresStore, known: Mapping[int, Position], propose: Any) -> dict[int, Position]:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(now_us: int, tail: Sequence[Any], found: Mapping[Any, int]) -> Proposal:
            proposal: Proposal = propose(now_us, tail, found)
            if not begun.done():
                begun.set_result(None)
            return proposal

        task = asyncio.create_task(_later(real, self, known, tell))
        _commits.add(task)
        await asyncio.wait([begun, task], return_when=asyncio.FIRST_COMPLETED)
        return {}

    PostgresStore.append = append  # type: ignore[method-assign]
    Appender._insert = _slowed(Appender._insert)  # type: ignore[method-assign]
    Appender._put_behind = _slowed(Appender._put_behind)  # type: ignore[method-assign]


def _slowed(send: Any) -> Any:
    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(COMMIT_S)
        return await send(*arguments)

    return slow


async def _later(real: Any, *arguments: Any) -> Any:
    return await real(*arguments)


BY_NAME: dict[str, Callable[[], None]] = {"no-epoch-check": drop_the_epoch_check, "early-acknowledgement": acknowledge_early}
