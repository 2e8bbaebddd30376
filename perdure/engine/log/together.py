"""Questions of many callers that go to the server together.

What comes while a question is on its way waits, and goes as one with everything else that has come; so one caller alone waits for nobody, and
many cost hardly more than one. Whoever asks gets an answer that was found after it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

__all__ = ["Together"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Together(Generic[K, V]):
    """ask: the answers to up to `at_once` different questions, in their order; what it raises is told to all whose questions these were."""

    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[Sequence[V]]], at_once: int) -> None:
        self._ask = ask
        self._at_once = at_once
        self._waiting: dict[K, list[asyncio.Future[V]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, question: K) -> V:
        """The answer to one question."""
        # A future for each caller: one that is cancelled takes nothing from the others.
        done: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(question, []).append(done)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._run(), name="perdure-together")
        return await done

    async def close(self) -> None:
        """Wait until nothing is on its way."""
        if self._asking is not None:
            await asyncio.wait([self._asking])

    async def _run(self) -> None:
        while self._waiting:
            questions = list(self._waiting)[: self._at_once]
            asked = [self._waiting.pop(question) for question in questions]
            try:
                answers = await self._ask(questions)
            except BaseException as problem:
                for done in (done for waiting in asked for done in waiting if not done.done()):
                    done.set_exception(problem) if isinstance(problem, Exception) else done.cancel()
                if not isinstance(problem, Exception):
                    raise
                continue
            for answer, waiting in zip(answers, asked, strict=True):
                for done in waiting:
                    if not done.done():
                        done.set_result(answer)
