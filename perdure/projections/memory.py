"""The cache of current states inside one process: least recently used agents go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from perdure import limits
from perdure.projections.contract import CachedState, CellWrite, CutOver, Outcome, Token
from perdure.projections.statistics import CacheStatistics

__all__ = ["AGENTS_MAX", "BYTES_MAX", "MemoryCache"]

BYTES_MAX = 256 * limits.MIB
"""Sealed bytes that a memory cache holds."""
AGENTS_MAX = 200_000
"""Agents that a memory cache holds."""


class MemoryCache:
    """A `StateCache` in process. bytes_max, agents_max: what it may hold; above, the least recently used agents are forgotten."""

    def __init__(self, *, bytes_max: int = BYTES_MAX, agents_max: int = AGENTS_MAX) -> None:
        self._bytes_max = bytes_max
        self._agents_max = agents_max
        self._states: OrderedDict[tuple[str, str], CachedState] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}
        self._bytes = 0
        self._built: dict[int, MemoryCache] = {}
        self._evicted = 0

    @property
    def size_bytes(self) -> int:
        """Sealed bytes held, names included."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._states)

    async def token(self, tenant: str, agent: str) -> Token | None:
        """The token of the agent's state, or None."""
        state = self._states.get((tenant, agent))
        return state and state.token

    async def tokens(self, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of (tenant, agent) pairs; None where there is no state."""
        found = [self._states.get(agent) for agent in agents]
        return [state and state.token for state in found]

    async def get(self, agents: Sequence[tuple[str, str]]) -> list[CachedState | None]:
        """The whole states, or None. The caller may keep them: later writes do not change them."""
        return [self._use(agent) for agent in agents]

    async def apply(self, writes: Sequence[CellWrite]) -> list[Token | None]:
        """Apply each write by itself, in order (see the contract)."""
        return [self._apply(write) for write in writes]

    async def remove(self, agents: Sequence[tuple[str, str]]) -> None:
        """Forget these agents."""
        for agent in agents:
            self._forget(agent)

    async def statistics(self) -> CacheStatistics:
        """What it holds; builds are not counted."""
        return CacheStatistics(len(self._states), self._bytes, self._bytes_max, self._evicted, 0)

    async def build(self, number: int, writes: Sequence[CellWrite]) -> list[Token | None]:
        """As `apply`, into a build (see the contract)."""
        beside = self._built.setdefault(number, MemoryCache(bytes_max=self._bytes_max, agents_max=self._agents_max))
        return await beside.apply(writes)

    async def built(self, number: int, agents: Sequence[tuple[str, str]]) -> list[Token | None]:
        """The tokens of what was built."""
        beside = self._built.get(number)
        return [None] * len(agents) if beside is None else await beside.tokens(agents)

    async def cut_over(self, number: int, agents: Sequence[tuple[str, str]]) -> list[CutOver]:
        """Let built states be those that are read (see the contract)."""
        return [self._cut_over(number, agent) for agent in agents]

    async def discard(self, number: int, agents: Sequence[tuple[str, str]]) -> None:
        """Forget what was built."""
        for agent in agents:
            self._forget_built(number, agent)

    async def close(self) -> None:
        """Forget everything."""
        self._built.clear()
        self._states.clear()
        self._sizes.clear()
        self._bytes = 0

    def _use(self, agent: tuple[str, str]) -> CachedState | None:
        state = self._states.get(agent)
        if state is None:
            return None
        self._states.move_to_end(agent)
        return state._replace(cells=dict(state.cells))

    def _apply(self, write: CellWrite) -> Token | None:
        agent = (write.tenant, write.agent)
        stored = self._states.get(agent)
        if stored is not None and write.token <= stored.token:
            return stored.token
        if write.expected is None:
            return self._keep(agent, write, dict(write.put), sum(map(_size, write.put.items())))
        if stored is None:
            return None
        if (stored.token.generation, stored.token.version, stored.layout) != (write.token.generation, write.expected, write.layout):
            return stored.token
        size = self._sizes[agent]
        for name, value in write.put.items():
            size += len(value) - len(stored.cells[name]) if name in stored.cells else len(name) + len(value)
        stored.cells.update(write.put)
        for name in write.remove:
            old = stored.cells.pop(name, None)
            size -= 0 if old is None else len(name) + len(old)
        return self._keep(agent, write, stored.cells, size)

    def _keep(self, agent: tuple[str, str], write: CellWrite, cells: dict[bytes, bytes], size: int) -> Token | None:
        if len(cells) != write.count:
            # What stood was not what the writer took it for; a miss is rebuilt from the log, a wrong state is not.
            self._forget(agent)
            return None
        before = self._states.get(agent)
        self._states[agent] = CachedState(write.token, cells, write.layout, 0 if before is None else before.build)
        self._states.move_to_end(agent)
        self._bytes += size - self._sizes.get(agent, 0)
        self._sizes[agent] = size
        self._shrink()
        return write.token

    def _shrink(self) -> None:
        while self._states and (self._bytes > self._bytes_max or len(self._states) > self._agents_max):
            self._forget(next(iter(self._states)))
            self._evicted += 1

    def _cut_over(self, number: int, agent: tuple[str, str]) -> CutOver:
        read = self._states.get(agent)
        if read is not None and read.build >= number:
            self._forget_built(number, agent)
            return CutOver(Outcome.OVER, read.token)
        beside = self._built.get(number)
        built = None if beside is None else beside._states.get(agent)
        if beside is None or built is None:
            return CutOver(Outcome.NOTHING, read and read.token)
        if read is not None and read.token > built.token:
            return CutOver(Outcome.BEHIND, read.token)
        size = beside._sizes[agent]
        self._forget_built(number, agent)
        self._forget(agent)
        self._states[agent] = built._replace(build=number)
        self._sizes[agent] = size
        self._bytes += size
        self._shrink()
        return CutOver(Outcome.DONE, built.token)

    def _forget_built(self, number: int, agent: tuple[str, str]) -> None:
        if (beside := self._built.get(number)) is not None:
            beside._forget(agent)
            if not beside:
                del self._built[number]

    def _forget(self, agent: tuple[str, str]) -> None:
        if self._states.pop(agent, None) is not None:
            self._bytes -= self._sizes.pop(agent)


def _size(cell: tuple[bytes, bytes]) -> int:
    return len(cell[0]) + len(cell[1])
