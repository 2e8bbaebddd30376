"""Who looks by the clock looks with the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.engine.log.together import Together
from perdure.recovery.ticks import tick


async def test_those_who_wait_go_on_together_and_ask_one_question() -> None:
    asked: list[int] = []

    async def ask(questions: Sequence[int]) -> Sequence[int]:
        asked.append(len(questions))
        return questions

    questions: Together[int, int] = Together(ask, 10)

    async def look(number: int) -> None:
        for _ in range(3):
            await tick(0.01)
            assert await questions.get(number) == number

    *looking, gone = [asyncio.create_task(look(number)) for number in range(5)]
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(*looking)
    assert asked == [4, 4, 4]
