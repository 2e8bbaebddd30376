"""What many transfers ask for at the same time goes as one, whatever it is asked about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from perdure.engine.log.together import Together

__all__ = ["Grouped"]

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
