"""Who has time waits for others, and nobody for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.migration.transfer.grouped import Grouped, Patience

LONG_S = 60.0


async def test_what_is_not_urgent_waits_until_enough_have_come_and_goes_as_one() -> None:
    asked: list[list[int]] = []

    async def ask(numbers: Sequence[int]) -> list[int]:
        asked.append(sorted(numbers))
        return list(numbers)

    grouped: Grouped[int, int] = Grouped(ask, 8)
    left = 5
    others = Patience(lambda: min(3, left), LONG_S)

    async def one(number: int) -> int:
        nonlocal left
        await others()
        answer = await grouped(number)
        left -= 1
        return answer

    async with asyncio.timeout(LONG_S / 2):  # the last two do not wait for a third who never comes
        first = [asyncio.create_task(one(number)) for number in range(2)]
        await asyncio.sleep(0)
        assert not asked
        assert await asyncio.gather(*first, one(2)) == [0, 1, 2]
        assert asked == [[0, 1, 2]]
        assert await asyncio.gather(one(3), one(4)) == [3, 4]
    assert asked == [[0, 1, 2], [3, 4]]
    await grouped.close()


async def test_who_is_alone_waits_no_longer_than_the_limit_and_who_gives_up_holds_up_nobody() -> None:
    others = Patience(lambda: 3, 0.01)
    async with asyncio.timeout(LONG_S):
        await others()
        leaves = asyncio.create_task(others())
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await others()
