"""States that a node begins to serve from: read together where many agents are asked for at once, as after a take-over.

Invariant: a state is read after it was asked for. Whoever asks because the outcome of an append is unknown never gets what was read before.
"""

from __future__ import annotations

import asyncio
from typing import Final

from perdure.engine.log.contract import AgentName
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
            for answer in waiting:
                answer.cancel()
        self._asked.clear()

    async def _read(self) -> None:
        while asked := self._take():
            try:
                read = await self._reader.states(list(asked))
            except Exception as problem:
                for answer in asked.values():
                    _tell(answer, problem)
            except asyncio.CancelledError:
                for answer in asked.values():
                    answer.cancel()
                raise
            else:
                for answer, state in zip(asked.values(), read, strict=True):
                    _tell(answer, state)

    def _take(self) -> dict[AgentName, _Asked]:
        """Who has asked first; of several who ask for one agent only one, for each of them needs a document of its own."""
        taken: dict[AgentName, _Asked] = {}
        for name in list(self._asked):
            waiting = self._asked[name]
            answer = waiting.pop(0)
            if not waiting:
                del self._asked[name]
            if not answer.done():  # else its caller has gone
                taken[name] = answer
                if len(taken) == LOAD_TOGETHER_MAX:
                    break
        return taken


def _tell(answer: _Asked, read: ReadState | Exception) -> None:
    if answer.done():
        return
    if isinstance(read, Exception):
        answer.set_exception(read)
    else:
        answer.set_result(read)
