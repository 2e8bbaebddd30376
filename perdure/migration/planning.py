"""Planning a migration: what would be done, how long it takes, what speaks against it. Pure; the facts are gathered by who calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import AlreadyExists, Conflict, InvalidInput, NotServed, Overloaded, PerdureError
from perdure.identifiers import uuid7
from perdure.migration.rates import Rates
from perdure.migration.records import Migration, Strategy, Transfer
from perdure.recovery.nodes import NodeState

__all__ = [
    "ROLLBACK_STEPS",
    "Facts",
    "Impact",
    "MigrationPlan",
    "Obstacle",
    "RollbackCheck",
    "check_rollback",
    "estimate",
    "obstacles",
    "phases_of",
    "prerequisites_of",
    "risks_of",
    "rollback_after_mismatch",
]

_OVERHEAD_S: Final = 0.15
"""Until the target looks, and the record's own writes."""


class Impact(msgspec.Struct, frozen=True):
    """What a migration is expected to cost. measured: how many migrations the rates come from; 0: guesses."""

    bytes: int
    events: int
    duration_s: float
    downtime_ms: float
    measured: int


class Obstacle(NamedTuple):
    """Something that speaks against a plan: which check, and the error that executing it would raise."""

    check: str
    problem: PerdureError


class MigrationPlan(msgspec.Struct, frozen=True):
    """What will be done. id: of the migration that it becomes. epoch: the agent's when it was made; another one makes the plan void."""

    id: str
    tenant: str
    agent: str
    source: str
    target: str
    epoch: int
    version: int
    digest: str
    strategy: Strategy
    transfer: Transfer
    phases: tuple[str, ...]
    prerequisites: tuple[str, ...]
    risks: tuple[str, ...]
    rollback: tuple[str, ...]
    impact: Impact
    reason: str = ""
    actor: str = ""
    group: str = ""
    rollback_of: str = ""

    @property
    def name(self) -> AgentName:
        """Whose."""
        return AgentName(self.tenant, self.agent)


class Facts(NamedTuple):
    """What is known when a plan is checked. owned: agents that the target owns. readable: None, or why the agent cannot be read here."""

    name: AgentName
    owner: str
    epoch: int
    nodes: Sequence[NodeState]
    owned: int
    version: str
    open: Migration | None
    readable: PerdureError | None = None


def obstacles(target: str, facts: Facts, *, strategy: Strategy = "live", epoch: int | None = None) -> list[Obstacle]:
    """Everything that speaks against moving the agent to the target, most basic first."""
    found: list[Obstacle] = []
    where: dict[str, Any] = {"tenant": facts.name.tenant, "agent": facts.name.agent}

    def add(check: str, kind: type[PerdureError], message: str, hint: str) -> None:
        found.append(Obstacle(check, kind(message, hint=hint, **where)))

    nodes = {node.name: (node, alive) for node, alive in facts.nodes}
    node, alive = nodes.get(target, (None, False))
    if facts.owner == target:
        add("not_the_source", InvalidInput, f"node {target!r} has the agent already", "name another node")
    if node is None:
        add("target_known", InvalidInput, f"no node {target!r} has announced itself", "`perdure recover nodes` lists them")
    elif not alive:
        add("target_alive", NotServed, f"node {target!r} does not live", "start it, or name another one")
    if node is not None and _series(node.version) != _series(facts.version):
        add(
            "target_version", Conflict, f"node {target!r} runs version {node.version}, this is {facts.version}", "bring both to one version"
        )
    if node is not None and facts.owned >= node.agents_max:
        add("target_room", Overloaded, f"node {target!r} has {facts.owned} agents and takes {node.agents_max}", "name another one")
    if facts.open is not None and facts.open.open:
        add("none_open", AlreadyExists, f"migration {facts.open.id} is open ({facts.open.phase})", "wait for it, or abort it")
    if facts.readable is not None:
        found.append(Obstacle("keys", facts.readable))
    if epoch is not None and epoch != facts.epoch:
        add("fresh", Conflict, f"the agent is in epoch {facts.epoch}, the plan was made in {epoch}", "plan anew")
    source_alive = nodes.get(facts.owner, (None, False))[1]
    if strategy == "emergency" and source_alive:
        add("source_lost", Conflict, f"node {facts.owner!r} lives", "use the strategy live")
    return found


def _series(version: str) -> str:
    """Major and minor: within them, the fold and the formats are the same."""
    return ".".join(version.split(".")[:2])


def estimate(bytes: int, events: int, rates: Rates, strategy: Strategy) -> Impact:
    """What it will cost. bytes: of the state. events: that must be folded on top of the newest snapshot."""
    copy_s = bytes / rates.bytes_per_s + events / rates.events_per_s
    downtime_ms = rates.downtime_ms + (copy_s * 1000 if strategy == "cold" else 0.0)
    return Impact(bytes, events, round(_OVERHEAD_S + copy_s, 3), round(downtime_ms, 3), rates.measured)


def phases_of(strategy: Strategy) -> tuple[str, ...]:
    """The phases that the migration goes through, in order."""
    if strategy == "cold":
        return ("preparing", "flipping", "fenced", "verifying", "committed")
    if strategy == "emergency":
        return ("preparing", "flipping", "fenced", "verifying", "committed")
    return ("preparing", "pre_copy", "flipping", "committed")


def prerequisites_of(target: str) -> tuple[str, ...]:
    """What must hold."""
    return (
        f"node {target!r} lives and has room",
        "both nodes run the same version, and have the tenant's key",
        "no other migration of the agent is open",
    )


def risks_of(strategy: Strategy, bytes: int) -> tuple[str, ...]:
    """What can go wrong, and what then happens."""
    risks = [
        "the target dies: the migration is aborted and the source goes on",
        "the copy differs: it is aborted before the source is stopped",
    ]
    if strategy == "cold":
        risks.append(f"the agent does not answer while {bytes} bytes are copied")
    if strategy == "live":
        risks.append("the agent is written to without a pause: it is fenced for the last step")
    return tuple(risks)


ROLLBACK_WINDOW_S: Final = 24 * 3_600.0
"""After this, moving the agent back is a migration of its own and no rollback."""


class RollbackCheck(NamedTuple):
    """Whether a migration can be undone now. target: where the agent would go back to. against: what speaks against it."""

    migration: str
    target: str
    ok: bool
    against: tuple[str, ...]


def check_rollback(done: Migration, owner: str, epoch: int, now_us: int) -> list[PerdureError]:
    """What speaks against undoing a migration, by its record and by who owns the agent now."""
    where: dict[str, Any] = {"tenant": done.tenant, "agent": done.agent}
    found: list[PerdureError] = []
    if done.phase != "committed":
        hint = "abort it" if done.open else ""
        return [Conflict(f"migration {done.id} is {done.phase}, and not committed", hint=hint, **where)]
    if not done.source:
        found.append(Conflict("nobody had the agent before", **where))
    if owner != done.target:
        found.append(Conflict(f"the agent belongs to node {owner!r} meanwhile", hint="plan a migration of its own", **where))
    ended_us = done.marks[-1].at_us if done.marks else done.created_us
    if now_us - ended_us > ROLLBACK_WINDOW_S * 1e6:
        found.append(Conflict(f"it is longer ago than {ROLLBACK_WINDOW_S / 3600:.0f} hours", hint="plan a migration of its own", **where))
    if epoch < done.final_epoch:
        found.append(Conflict(f"the agent is in epoch {epoch}, before the migration's {done.final_epoch}", **where))
    return found


def rollback_after_mismatch(done: Migration) -> MigrationPlan:
    """The plan by which the source of a completed migration takes the agent back, trusting nothing but the log."""
    return MigrationPlan(
        uuid7().hex,
        done.tenant,
        done.agent,
        done.target,
        done.source,
        done.final_epoch,
        0,
        "",
        "cold",
        "streaming",
        phases_of("cold"),
        prerequisites_of(done.source),
        risks_of("cold", done.bytes),
        ROLLBACK_STEPS,
        Impact(done.bytes, done.events, 0.0, 0.0, 0),
        reason="digest mismatch after the commit",
        rollback_of=done.id,
    )


ROLLBACK_STEPS: Final = (
    "the same way back: the former source copies, the copy is compared, the agent is flipped",
    "`perdure migrate rollback ID` within the window; before the commit, `perdure migrate abort ID`",
)
