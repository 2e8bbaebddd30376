"""Fills a log with made-up sealed events, for tests of what reads a log and never opens a payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec

from perdure.engine.log.contract import LogStore, Proposal
from perdure.engine.log.records import AgentName, AgentRecord, TailEvent
from perdure.identifiers import uuid7
from perdure.testing.bus_kit import sealed

__all__ = ["fill"]

AGENTS_PER_PARTITION: Final = 5
PAGE_EVENTS: Final = 1_000


async def fill(store: LogStore, partition: int, count: int, payload: bytes = b"sealed") -> None:
    """Append `count` events to a partition; its agents take turns."""
    agents = await _agents(store, partition)
    while count:
        page = min(count, PAGE_EVENTS)
        await _append(store, partition, agents, page, payload)
        count -= page


async def _agents(store: LogStore, partition: int) -> list[AgentRecord]:
    names = [AgentName("kit", f"agent-{partition}-{number}") for number in range(AGENTS_PER_PARTITION)]
    new = [AgentRecord(*name, 0, 0, partition, "", 1, "kit", {}, b"key", 1) for name in names]
    return await store.create_agents(new)


async def _append(store: LogStore, partition: int, agents: Sequence[AgentRecord], count: int, payload: bytes) -> None:
    known = {partition: (await store.positions())[partition]}

    def propose(now_us: int, tail: Sequence[TailEvent], found: Mapping[tuple[int, UUID], int]) -> Proposal:  # noqa: ARG001
        last = tail[-1].offset if tail else known[partition].offset
        time_us = max(now_us, tail[-1].time_us if tail else known[partition].time_us)
        rows = []
        for offset in range(last + 1, last + 1 + count):
            agent = agents[offset % len(agents)]
            rows.append(
                msgspec.structs.replace(
                    sealed(partition, offset, payload, agents=len(agents)),
                    tenant_key=agent.tenant_key,
                    agent_key=agent.agent_key,
                    id=uuid7(),
                    time_us=time_us,
                    causation_id=None,
                )
            )
        return Proposal(rows, [], [])

    await store.append(known, propose)
