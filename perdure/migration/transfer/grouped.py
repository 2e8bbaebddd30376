"""What many transfers ask for at the same time goes as one, whatever it is asked about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from perdure.engine.log.together import Together

__all__ = ["Grouped", "Patience"]

A = TypeVar("A")
B = TypeVar("B")


class _Asked(Generic[A]):
    """One question; two about the same are still two."""

    __slots__ = ("about",)

    def __init__(self, about: A) -> None:
        self.about = about


class Grouped(Generic[A, B]):
    """ask: the answers to up to `at_once` questions, in their order; what it raises is told to all who asked, an exception that it returns to the
    one whose answer it is."""

    def __init__(self, ask: Callable[[Sequence[A]], Awaitable[Sequence[B | BaseException]]], at_once: int) -> None:
        async def ask_all(asked: Sequence[_Asked[A]]) -> Sequence[B | BaseException]:
            return await ask([each.about for each in asked])

        self._together: Together[_Asked[A], B | BaseException] = Together(ask_all, at_once)

    async def __call__(self, about: A) -> B:
        """The answer, together with those of all who ask meanwhile."""
        answer = await self._together.get(_Asked(about))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def close(self) -> None:
        """Wait until nothing is on its way."""
        await self._together.close()


class Patience:
    """What is not urgent waits for others, so that all go as one: until so many wait as `enough` says, or the first has waited for `limit_s`."""

    def __init__(self, enough: Callable[[], int], limit_s: float) -> None:
        self._enough = enough
        self._limit_s = limit_s
        self._gate: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0

    async def __call__(self) -> None:
        """Wait for the others."""
        if self._gate is None:
            self._gate = asyncio.Event()
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._open)
        gate = self._gate
        self._waiting += 1
        if self._waiting >= self._enough():
            self._open()
        await gate.wait()

    def _open(self) -> None:
        if self._gate is not None and self._timer is not None:
            self._gate.set()
            self._timer.cancel()
        self._gate, self._timer, self._waiting = None, None, 0
