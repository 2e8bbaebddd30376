"""What the snapshotter remembers of agents: how much has been written since their newest snapshot, for a bounded number of them. Pure.

How many events an agent is behind follows from its version and its snapshot's, so forgetting an agent forgets no event: it is asked for anew
when it is seen again. Bytes since the snapshot are counted from when it was seen; for what came before, the average stands in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from perdure.limits import SNAPSHOTTER_AGENTS_MAX
from perdure.snapshots.cadence import Cadence, Replay, Trigger, trigger_of

__all__ = ["Tally"]


class _Behind:
    __slots__ = ("bytes_seen", "snapshot_version", "state_bytes", "version")

    def __init__(self, snapshot_version: int, state_bytes: int, bytes_seen: int) -> None:
        self.snapshot_version = snapshot_version
        self.state_bytes = state_bytes
        self.bytes_seen = bytes_seen
        self.version = snapshot_version


class Tally:
    """Agents by key. `unknown` says which to look up, `learn` takes the answer, `saw` counts an event and says whether a snapshot is due."""

    def __init__(self, cadence: Cadence, limit: int = SNAPSHOTTER_AGENTS_MAX) -> None:
        self._cadence = cadence
        self._limit = limit
        self._agents: OrderedDict[int, _Behind] = OrderedDict()
        self._events = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._agents)

    def unknown(self, agents: Iterable[int]) -> set[int]:
        """Which of these are not remembered."""
        return {agent for agent in agents if agent not in self._agents}

    def learn(self, agent: int, snapshot_version: int, state_bytes: int) -> None:
        """The agent's newest snapshot is at this version (0: there is none)."""
        known = self._agents.get(agent)
        if known is not None and known.snapshot_version >= snapshot_version:
            return
        behind = _Behind(snapshot_version, state_bytes, 0)
        if known is not None:
            behind.version = max(known.version, snapshot_version)
            behind.bytes_seen = self._average(behind.version - snapshot_version)
        self._agents[agent] = behind
        self._agents.move_to_end(agent)

    def saw(self, agent: int, version: int, size_bytes: int, events: int = 1) -> Trigger | None:
        """Count events, up to a version, of an agent that is remembered; why a snapshot is due, if it is."""
        self._events += events
        self._bytes += size_bytes
        behind = self._agents[agent]
        self._agents.move_to_end(agent)
        if version <= behind.snapshot_version or version <= behind.version:
            return self._due(behind)
        behind.bytes_seen += size_bytes + self._average(version - behind.version - events)
        behind.version = version
        return self._due(behind)

    def state_bytes(self, agent: int) -> int:
        """About how large the state of an agent is that is remembered: its last snapshot's, and what was written since."""
        behind = self._agents[agent]
        return behind.state_bytes + behind.bytes_seen

    def forget(self, agent: int) -> None:
        """Let it be asked for anew when it is seen again."""
        self._agents.pop(agent, None)

    def trim(self) -> None:
        """Forget those seen longest ago, down to the limit."""
        while len(self._agents) > self._limit:
            self._agents.popitem(last=False)

    def _due(self, behind: _Behind) -> Trigger | None:
        return trigger_of(Replay(behind.version - behind.snapshot_version, behind.bytes_seen, behind.state_bytes), self._cadence)

    def _average(self, events: int) -> int:
        return events * self._bytes // self._events if events > 0 and self._events else 0
