"""What is wrong with an agent, and what is done about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

__all__ = ["KINDS", "Failure", "FailureReport", "Kind", "Strategy", "select_recovery_strategy", "steps_of"]

Kind = Literal["key_missing", "log_damaged", "node_lost", "hung", "poisoned", "cache_damaged", "snapshot_damaged"]
KINDS: Final[tuple[Kind, ...]] = ("key_missing", "log_damaged", "node_lost", "hung", "poisoned", "cache_damaged", "snapshot_damaged")
"""Gravest first."""
Strategy = Literal["none", "wait_for_key", "recreate", "migrate", "restart", "restore"]


class Failure(msgspec.Struct, frozen=True):
    """One thing that is wrong, with what shows it."""

    kind: Kind
    evidence: str


class FailureReport(msgspec.Struct, frozen=True):
    """Everything that is wrong with an agent, gravest first. other_nodes: alive nodes that could take it."""

    tenant: str
    agent: str
    owner: str
    version: int
    failures: tuple[Failure, ...]
    other_nodes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Nothing is wrong."""
        return not self.failures


def select_recovery_strategy(report: FailureReport) -> Strategy:
    """The strategy for the gravest failure: later ones are looked at again after it."""
    if not report.failures:
        return "none"
    match min(report.failures, key=lambda failure: KINDS.index(failure.kind)).kind:
        case "key_missing":
            return "wait_for_key"
        case "log_damaged":
            return "recreate"
        case "node_lost" | "hung":
            return "migrate" if report.other_nodes else "restart"
        case _:
            return "restore"


_STEPS: Final[dict[Strategy, tuple[str, ...]]] = {
    "none": (),
    "wait_for_key": ("make the key available to this process", "look again"),
    "recreate": ("take the newest sound snapshot", "make a new agent of it", "leave the damaged one as it is, for repair"),
    "migrate": ("choose the node with the most room", "assign the agent to it", "the node takes it under a new epoch", "it serves"),
    "restart": ("take the agent from the lost node under a new epoch", "the first node that is asked for it takes it"),
    "restore": ("recover the state down the ladder", "compare it with the fold of the log", "replace the damaged copies", "let it go on"),
}


def steps_of(strategy: Strategy) -> Sequence[str]:
    """What will be done, in order, for people."""
    return _STEPS[strategy]
