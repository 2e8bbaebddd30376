"""What a verification shall look at, how fast, and where it stood when it was interrupted."""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b
from typing import Any, Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord
from perdure.errors import InvalidInput

__all__ = [
    "Checkpoint",
    "Looked",
    "Pacer",
    "VerifyOrder",
    "is_sampled",
    "load_checkpoint",
    "parse_sample",
    "sampled_partitions",
    "save_checkpoint",
]

SCOPE: Final = "verify"
NAME: Final = "checkpoint"
_WHOLE: Final = 1 << 64


class VerifyOrder(msgspec.Struct, frozen=True):
    """sample: the part of all agents and partitions that is looked at, above 0 up to 1; the same seed chooses the same ones. events_per_s: the
    most that are read, 0 for as fast as it goes. keep: note how far it is, and what came of it. resume: go on where the noted one stood; then
    sample and seed are its own."""

    sample: float = 1.0
    seed: int = 0
    events_per_s: float = 0.0
    keep: bool = False
    resume: bool = False

    def checked(self) -> VerifyOrder:
        """Itself. Raises InvalidInput for what cannot be."""
        if not 0 < self.sample <= 1:
            raise InvalidInput(f"sample {self.sample:g} is not above 0 and up to 1", hint="5% or 0.05")
        if not 0 <= self.seed < _WHOLE:
            raise InvalidInput(f"seed {self.seed} is no number from 0 to 2^64 - 1")
        if self.events_per_s < 0:
            raise InvalidInput(f"{self.events_per_s:g} events/s", hint="above 0; 0 for as fast as it goes")
        return self


class Looked(msgspec.Struct, frozen=True):
    """What was looked at: agents of all agents, events read, partitions by number, of so many. resumed: how often it was gone on with. Times are
    unix microseconds."""

    sample: float = 1.0
    seed: int = 0
    agents: int = 0
    agents_total: int = 0
    events: int = 0
    partitions: tuple[int, ...] = ()
    partitions_total: int = 0
    resumed: int = 0
    started_us: int = 0
    ended_us: int = 0


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a verification stands. after: tenant and agent up to which it looked; partitions_done: those that were compared; the reports are what
    was found until then. ended_us: 0 while it is not over."""

    sample: float
    seed: int
    started_us: int
    updated_us: int
    after: tuple[str, str] = ("", "")
    agents_over: bool = False
    partitions_done: tuple[int, ...] = ()
    agents_total: int = 0
    events: int = 0
    counted: int = 0
    resumed: int = 0
    ended_us: int = 0
    ok: bool = False
    damaged: bool = False
    log: Any = None
    topic: Any = None
    cache: Any = None
    snapshots: Any = None

    def looked(self, partitions_total: int, agents: int) -> Looked:
        """What it has looked at until now."""
        return Looked(
            self.sample,
            self.seed,
            agents,
            self.agents_total,
            self.events,
            self.partitions_done,
            partitions_total,
            self.resumed,
            self.started_us,
            self.ended_us,
        )


def parse_sample(text: str) -> float:
    """`5%` or `0.05`. Raises InvalidInput."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InvalidInput(f"sample {text!r:.40} is no part of anything", hint="5% or 0.05") from None


def is_sampled(record: AgentRecord, sample: float, seed: int) -> bool:
    """Whether an agent is among those that the seed chooses; the same on every machine, and whoever else there is."""
    if sample >= 1:
        return True
    name = f"{record.tenant}\0{record.agent}".encode()
    return _place(name, seed) < sample * _WHOLE


def sampled_partitions(count: int, sample: float, seed: int) -> list[int]:
    """The partitions that the seed chooses: their part, rounded up, so at least one."""
    by_place = sorted(range(count), key=lambda partition: _place(partition.to_bytes(4, "big"), seed))
    return sorted(by_place[: max(1, -int(-sample * count // 1))])


def _place(name: bytes, seed: int) -> int:
    return int.from_bytes(blake2b(name, digest_size=8, key=seed.to_bytes(8, "big")).digest(), "big")


class Pacer:
    """Keeps a rate: `spent` waits as long as what was read is ahead of it. events: read until now."""

    def __init__(self, events_per_s: float) -> None:
        self._events_per_s = events_per_s
        self._started_s = time.monotonic()
        self.events = 0

    async def spent(self, events: int) -> None:
        """So many were read."""
        self.events += events
        if self._events_per_s:
            ahead_s = self.events / self._events_per_s - (time.monotonic() - self._started_s)
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkpoint).decode


async def load_checkpoint(store: LogStore) -> Checkpoint | None:
    """The newest verification that was noted, over or not."""
    document = await store.get_document(SCOPE, NAME)
    return None if document is None else _decode(document.value)


async def save_checkpoint(store: LogStore, checkpoint: Checkpoint) -> None:
    """Note it; of several that run at once the last one to note is gone on with."""
    await store.put_document(SCOPE, NAME, _encode(checkpoint), expected=None)
