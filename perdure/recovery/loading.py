"""States that a node begins to serve from: read together where many agents are asked for at once, as after a take-over.

Invariant: a state is read after it was asked for. Whoever asks because the outcome of an append is unknown never gets what was read before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from perdure.engine.log.records import AgentName
from perdure.projections.reader import ReadState, StateReader
from perdure.recovery.serving import Loaded

__all__ = ["LOAD_TOGETHER_MAX", "StateLoader"]

LOAD_TOGETHER_MAX: Final = 128
"""Agents whose states are read together."""
LOADS_MAX: Final = 2
"""Readings under way at once: one waits for the log while the other is folded."""

_Asked = asyncio.Future[ReadState]


class StateLoader:
    """`load` a state at any time; whoever comes while readings are under way shares the next one."""

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader
        self._asked: dict[AgentName, list[_Asked]] = {}
        self._readings: set[asyncio.Task[None]] = set()

    async def load(self, name: AgentName) -> Loaded:
        """The newest state that the log holds. Raises what reading it raises."""
        answer: _Asked = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(answer)
        if len(self._readings) < LOADS_MAX:
            reading = asyncio.create_task(self._read(), name="perdure-load")
            self._readings.add(reading)
            reading.add_done_callback(self._readings.discard)
        read = await answer
        return Loaded(read.document, read.version)

    async def close(self) -> None:
        """Give up what is being read; who waits for it is cancelled."""
        for reading in self._readings:
            reading.cancel()
        await asyncio.gather(*self._readings, return_exceptions=True)
        for waiting in self._asked.values():
            _cancel(waiting)
        self._asked.clear()

    async def _read(self) -> None:
        while asked := self._take():
            try:
                read = await self._reader.states(list(asked))
            except Exception as problem:
                for waiting in asked.values():
                    _tell(waiting, problem)
            except asyncio.CancelledError:
                for waiting in asked.values():
                    _cancel(waiting)
                raise
            else:
                for waiting, state in zip(asked.values(), read, strict=True):
                    _tell(waiting, state)

    def _take(self) -> dict[AgentName, list[_Asked]]:
        """Who has asked first; callers that have gone are passed over."""
        taken: dict[AgentName, list[_Asked]] = {}
        while self._asked and len(taken) < LOAD_TOGETHER_MAX:
            name = next(iter(self._asked))
            waiting = [answer for answer in self._asked.pop(name) if not answer.done()]
            if waiting:
                taken[name] = waiting
        return taken


def _tell(waiting: Sequence[_Asked], read: ReadState | Exception) -> None:
    for answer in waiting:
        if answer.done():
            continue
        if isinstance(read, Exception):
            answer.set_exception(read)
        else:
            answer.set_result(read)


def _cancel(waiting: Sequence[_Asked]) -> None:
    for answer in waiting:
        answer.cancel()
