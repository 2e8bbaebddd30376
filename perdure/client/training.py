"""Compression dictionaries from a tenant's own events: on request, and by itself once there is enough to learn from."""

from __future__ import annotations

import asyncio
import random

import msgspec

from perdure import limits
from perdure.engine.log.codec import encode_payload
from perdure.engine.log.contract import AgentRecord, EventFilter
from perdure.engine.log.log import EventLog
from perdure.errors import NotFound

__all__ = ["Trained", "train"]

AGENTS_SAMPLED_MAX = 2_000
EVENTS_PER_AGENT_MAX = 200


class Trained(msgspec.Struct, frozen=True):
    """A dictionary that is used from now on. samples: events that it was made from."""

    dictionary: int
    samples: int


async def train(log: EventLog, tenant: str, *, seed: int = 0) -> Trained:
    """Make a dictionary from a sample of the tenant's events. Raises NotFound (no such tenant), InvalidInput (too few events)."""
    records: list[AgentRecord] = []
    after = ""
    while page := await log.store.list_agents(tenant, after=after, limit=500):
        records += page
        after = page[-1].agent
    if not records:
        raise NotFound(f"tenant {tenant!r} has no agents", tenant=tenant)
    # Seeded, so that training the same log again samples the same events.
    chosen = random.Random(seed).sample(records, min(len(records), AGENTS_SAMPLED_MAX))  # noqa: S311 - not a secret
    samples: list[bytes] = []
    size_bytes = 0
    for record in chosen:
        sealed = await log.store.read_agent(record, EventFilter(), EVENTS_PER_AGENT_MAX)
        payloads = [encode_payload(event) for event in await log.vault.open_all(sealed)]
        samples += payloads
        size_bytes += sum(map(len, payloads))
        if size_bytes > limits.TRAINING_BYTES_MAX:
            break
        await asyncio.sleep(0)
    dictionary = await log.vault.book.add(tenant, samples)
    return Trained(dictionary, len(samples))
