"""When an agent is due for a snapshot. Pure.

The measure is what a load would have to replay, in events and in bytes, not the clock: an agent that nobody writes to needs no new snapshot.
A snapshot costs about as much as its state is large, so the budget of a large state is larger: replaying then never takes more than a named
fraction of the time that loading the state itself takes, and writing one never costs much more than the events that caused it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from perdure.errors import InvalidInput
from perdure.limits import REPLAY_BUDGET_BYTES, REPLAY_BUDGET_EVENTS

__all__ = ["EVENT", "MANUAL", "MIGRATION", "SCHEDULED", "Cadence", "Replay", "Trigger", "trigger_of"]

Trigger = Literal["manual", "scheduled", "event", "migration"]
MANUAL: Final[Trigger] = "manual"
SCHEDULED: Final[Trigger] = "scheduled"
EVENT: Final[Trigger] = "event"
MIGRATION: Final[Trigger] = "migration"
STATE_FRACTION: Final = 1 / 8
"""The budget is at least this part of the state's size."""


class Replay(msgspec.Struct, frozen=True):
    """What a load must replay: events and their payload bytes since the newest snapshot, whose state had `state_bytes` (0: there is none)."""

    events: int
    bytes: int
    state_bytes: int = 0


class Cadence(msgspec.Struct, frozen=True):
    """Budgets of the scheduled trigger, and where wanted an exact one: every so many versions or payload bytes (None: not)."""

    budget_events: int = REPLAY_BUDGET_EVENTS
    budget_bytes: int = REPLAY_BUDGET_BYTES
    every_versions: int | None = None
    every_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}", hint="a cadence is at least 1")


def trigger_of(replay: Replay, cadence: Cadence) -> Trigger | None:
    """Why a snapshot is due now; None while it is not. Nothing to replay is never due."""
    if replay.events <= 0:
        return None
    if cadence.every_versions is not None and replay.events >= cadence.every_versions:
        return EVENT
    if cadence.every_bytes is not None and replay.bytes >= cadence.every_bytes:
        return EVENT
    scale = max(1.0, replay.state_bytes * STATE_FRACTION / cadence.budget_bytes)
    if replay.events >= cadence.budget_events * scale or replay.bytes >= cadence.budget_bytes * scale:
        return SCHEDULED
    return None
