"""Moving many agents: rolling migrations, draining nodes, bringing nodes to carry alike, and pins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

from perdure.client.parts import Parts
from perdure.engine.log.records import AgentName, AgentRecord, from_microseconds
from perdure.errors import Conflict, InvalidInput, NotFound
from perdure.identifiers import uuid7
from perdure.migration.fleet import AT_ONCE_DEFAULT, MOVES_DEFAULT, REST_S, FleetReport, check_at_once, each_at_once
from perdure.migration.ledger import Ledger
from perdure.migration.leveling import TOLERANCE, By, Carried, Level, level
from perdure.migration.nodes import Pin, drained_nodes, pins, set_drained, set_pin
from perdure.migration.records import Migration, Strategy
from perdure.recovery.nodes import Node, list_nodes

__all__ = ["MigrationFleet"]

PAGE: Final = 500
PASSES_MAX: Final = 5
"""How often a drained node is looked at again for agents that came to it meanwhile."""
SAMPLE_S: Final = 1.0
"""For how long agents' events are counted to know their load."""

Seen = Callable[[Migration], None]
Move = Callable[[AgentName, str, Strategy, str, str], Awaitable[Migration]]
"""move(agent, target, strategy, reason, group): one whole migration, as it ended."""


class MigrationFleet:
    """`engine.migrations.fleet`: moves many agents at once, drains nodes, balances them, and pins agents to where they are."""

    def __init__(self, engine: Parts, ledger: Ledger, move: Move) -> None:
        self._store = engine.log.store
        self._vault = engine.log.vault
        self._ledger = ledger
        self._move = move

    async def rolling(
        self,
        names: Iterable[AgentName],
        target: str,
        *,
        at_once: int = AT_ONCE_DEFAULT,
        strategy: Strategy = "live",
        reason: str = "",
        seen: Seen | None = None,
    ) -> FleetReport:
        """Move these agents to one node, a bounded number at once. The report says which could not be."""
        report = FleetReport(uuid7().hex)
        began_at = time.monotonic()

        async def move(name: AgentName) -> Migration:
            return await self._move(name, target, strategy, reason, report.group)

        await each_at_once(names, move, report, at_once=check_at_once(at_once), seen=seen)
        report.duration_s = round(time.monotonic() - began_at, 3)
        return report

    async def drain_node(
        self,
        node: str,
        *,
        at_once: int = AT_ONCE_DEFAULT,
        pinned_too: bool = False,
        strategy: Strategy = "live",
        reason: str = "drain",
        seen: Seen | None = None,
    ) -> FleetReport:
        """Move every agent of a node to others, each to the one that is fullest least; the node takes no new ones until `undrain_node`.

        Pinned agents stay, and are counted, unless pinned_too. Raises NotFound, Conflict where no other node lives.
        """
        check_at_once(at_once)
        alive = await self._alive()
        if node not in {state.node.name for state in await list_nodes(self._store)}:
            raise NotFound(f"no node {node!r} has announced itself", hint="`perdure recover nodes` lists them")
        await set_drained(self._store, node, drained=True)
        others = [other for other in alive if other.name != node and other.name not in await drained_nodes(self._store)]
        if not others:
            await set_drained(self._store, node, drained=False)
            raise Conflict("no other node lives", hint="start one with `perdure host`")
        report = FleetReport(uuid7().hex)
        began_at = time.monotonic()
        stay = {} if pinned_too else await pins(self._store)
        owned = {other.name: await self._store.count_owned(other.name) for other in others}

        async def move(name: AgentName) -> Migration:
            target = min(others, key=lambda other: (owned[other.name] / other.agents_max, other.name)).name
            owned[target] += 1
            return await self._move(name, target, strategy, reason, report.group)

        for _ in range(PASSES_MAX):
            before = report.moved
            report.left = report.pinned = 0
            await each_at_once(self._owned(node, stay, report), move, report, at_once=at_once, seen=seen)
            if report.stopped or await self._store.count_owned(node) == report.pinned or report.moved == before:
                break
        report.left = max(report.left, await self._store.count_owned(node) - report.pinned)
        report.duration_s = round(time.monotonic() - began_at, 3)
        return report

    async def undrain_node(self, node: str) -> None:
        """The node takes agents again."""
        await set_drained(self._store, node, drained=False)

    async def plan_rebalance(self, *, by: By = "agents", moves_max: int = MOVES_DEFAULT, tolerance: float = TOLERANCE) -> Level:
        """The moves that would bring all living nodes to carry alike; nothing is changed. Pinned agents stay, and so do those that rest because
        they were just moved, which are counted."""
        if by not in ("agents", "bytes", "load"):
            raise InvalidInput(f"nodes cannot be rebalanced by {by!r}", hint="agents, bytes or load")
        drained = await drained_nodes(self._store)
        nodes = [node for node in await self._alive() if node.name not in drained]
        owned = {node.name: [record async for record in self._records(node.name)] for node in nodes}
        weights = await self._weights([record for records in owned.values() for record in records], by)
        pinned, resting = (await pins(self._store)).keys(), await self._resting()
        stay = pinned | resting.keys()
        movable = {
            node: [Carried(_name(record), weights[record.agent_key]) for record in records if _name(record) not in stay]
            for node, records in owned.items()
        }
        fixed = {node: sum(weights[record.agent_key] for record in records if _name(record) in stay) for node, records in owned.items()}
        rooms = {node.name: node.agents_max - len(owned[node.name]) for node in nodes}
        planned = level(movable, rooms, fixed, moves_max=moves_max, tolerance=tolerance)
        here = {_name(record) for records in owned.values() for record in records}
        until_us = [resting[name] for name in (resting.keys() & here) - pinned]
        return planned._replace(resting=len(until_us), rest_until=from_microseconds(max(until_us)) if until_us else None)

    async def rebalance(
        self,
        *,
        by: By = "agents",
        moves_max: int = MOVES_DEFAULT,
        tolerance: float = TOLERANCE,
        at_once: int = AT_ONCE_DEFAULT,
        seen: Seen | None = None,
    ) -> tuple[Level, FleetReport]:
        """Plan the moves, and make them."""
        check_at_once(at_once)
        planned = await self.plan_rebalance(by=by, moves_max=moves_max, tolerance=tolerance)
        targets = {move.name: move.target for move in planned.moves}
        report = FleetReport(uuid7().hex)
        began_at = time.monotonic()

        async def move(name: AgentName) -> Migration:
            return await self._move(name, targets[name], "live", f"rebalance by {by}", report.group)

        await each_at_once(list(targets), move, report, at_once=at_once, seen=seen)
        report.duration_s = round(time.monotonic() - began_at, 3)
        return planned, report

    async def pin(self, name: AgentName, *, reason: str = "") -> None:
        """The agent stays where it is: neither `rebalance` nor `drain_node` moves it. Raises AgentNotFound."""
        await self._vault.record(*name)
        await set_pin(self._store, name, reason)

    async def unpin(self, name: AgentName) -> None:
        """It may be moved again."""
        await set_pin(self._store, name, None)

    async def pins(self) -> list[Pin]:
        """Every pinned agent."""
        return list((await pins(self._store)).values())

    # --- parts ---
    async def _alive(self) -> list[Node]:
        return [node for node, alive in await list_nodes(self._store) if alive]

    async def _records(self, node: str) -> AsyncIterator[AgentRecord]:
        after = 0
        while page := await self._store.list_owned(node, after=after, limit=PAGE):
            after = page[-1].agent_key
            for record in page:
                yield record

    async def _owned(self, node: str, stay: dict[AgentName, Pin], report: FleetReport) -> AsyncIterator[AgentName]:
        async for record in self._records(node):
            if _name(record) in stay:
                report.pinned += 1
            else:
                yield _name(record)

    async def _resting(self) -> dict[AgentName, int]:
        """Agents that were moved a moment ago or are being moved, and until when they rest (unix microseconds; an open migration: at least)."""
        now_us, rest_us = time.time_ns() // 1000, int(REST_S * 1e6)
        newest = await self._ledger.newest()
        return {
            each.name: max(now_us, each.created_us + rest_us)
            for each in newest
            if each.open or (each.phase == "committed" and each.created_us + rest_us > now_us)
        }

    async def _weights(self, records: Sequence[AgentRecord], by: By) -> dict[int, float]:
        """By agent key: 1, the bytes of the newest snapshot (its version where there is none), or events a second."""
        if by == "agents" or not records:
            return {record.agent_key: 1.0 for record in records}
        heads = await self._store.heads(records)
        versions = {record.agent_key: head.version for record, head in zip(records, heads, strict=True)}
        if by == "bytes":
            rows = await self._store.newest_snapshots(records)
            return {
                record.agent_key: float(row.plain_bytes if row is not None else versions[record.agent_key])
                for record, row in zip(records, rows, strict=True)
            }
        await asyncio.sleep(SAMPLE_S)
        later = await self._store.heads(records)
        return {
            record.agent_key: (head.version - versions[record.agent_key]) / SAMPLE_S for record, head in zip(records, later, strict=True)
        }


def _name(record: AgentRecord) -> AgentName:
    return AgentName(record.tenant, record.agent)
