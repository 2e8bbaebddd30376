"""Questions that go together: as few as can be, each answered by what was found after it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from perdure.engine.log.together import Together
from perdure.errors import Unavailable


class Server:
    """Answers when it is let to, with the value of that moment."""

    def __init__(self) -> None:
        self.value = 0
        self.asked: list[list[str]] = []
        self.may_answer = asyncio.Semaphore(0)
        self.together = Together(self._answer, 3)

    async def _answer(self, questions: Sequence[str]) -> list[tuple[str, int]]:
        value = self.value
        self.asked.append(list(questions))
        await self.may_answer.acquire()
        if "bad" in questions:
            raise Unavailable("away")
        return [(question, value) for question in questions]


async def test_what_is_asked_meanwhile_goes_as_one_and_sees_what_was_written_before() -> None:
    server = Server()
    first = asyncio.create_task(server.together.get("a"))
    await _begun(server, 1)
    server.value = 1
    later = [asyncio.create_task(server.together.get(question)) for question in ("a", "b", "b", "c", "d")]
    await asyncio.sleep(0)
    for _ in range(3):
        server.may_answer.release()
    assert await first == ("a", 0)
    assert await asyncio.gather(*later) == [("a", 1), ("b", 1), ("b", 1), ("c", 1), ("d", 1)]
    assert server.asked == [["a"], ["a", "b", "c"], ["d"]]


async def test_a_failure_is_told_to_those_whose_question_it_was() -> None:
    server = Server()
    for _ in range(2):
        server.may_answer.release()
    bad, beside = (asyncio.create_task(server.together.get(question)) for question in ("bad", "beside"))
    with pytest.raises(Unavailable):
        await bad
    with pytest.raises(Unavailable):
        await beside
    assert await server.together.get("a") == ("a", 0)


async def test_who_gives_up_takes_nothing_from_the_others() -> None:
    server = Server()
    given_up, other = (asyncio.create_task(server.together.get("a")) for _ in range(2))
    await _begun(server, 1)
    given_up.cancel()
    await asyncio.wait([given_up])
    server.may_answer.release()
    assert given_up.cancelled()
    assert await other == ("a", 0)
    await server.together.close()


async def _begun(server: Server, questions: int) -> None:
    async with asyncio.timeout(60):
        while len(server.asked) < questions:
            await asyncio.sleep(0)
