"""A chunk dictionary for one type of agents, from the states of some of them."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from perdure import limits
from perdure.engine.log.log import EventLog
from perdure.engine.log.records import AgentRecord
from perdure.engine.replay import fold_log
from perdure.errors import NotFound
from perdure.snapshots.dictionaries import DictionaryStore, samples_of
from perdure.snapshots.loader import SnapshotLoader

__all__ = ["TrainedChunks", "train_chunks"]

AGENTS_SAMPLED_MAX: Final = 500
PAGE_AGENTS: Final = 500


class TrainedChunks(NamedTuple):
    """A dictionary that is used from now on for snapshots of these agents. agents: whose states it was made from."""

    dictionary: int
    agent_type: str
    agents: int
    samples: int


async def train_chunks(
    log: EventLog, loader: SnapshotLoader, dictionaries: DictionaryStore, tenant: str, agent_type: str, *, seed: int = 0
) -> TrainedChunks:
    """Make a dictionary from the states of some agents of a type, each as likely as another; seeded, so that training again takes the same.

    Raises NotFound (no such agents), InvalidInput (too little to learn from), KeyUnavailable, Unavailable.
    """
    chosen = await _choose(log, tenant, agent_type, random.Random(seed))  # noqa: S311 - not a secret
    if not chosen:
        raise NotFound(f"tenant {tenant!r} has no agents of type {agent_type!r}", tenant=tenant)
    samples: list[bytes] = []
    size_bytes = agents = 0
    for record in chosen:
        loaded = await loader.load(record)
        state = await fold_log(log.store, log.vault, record, start=loaded.folded if loaded else None)
        new = list(samples_of((state.document,)))
        samples += new
        size_bytes += sum(map(len, new))
        agents += 1
        if size_bytes > limits.TRAINING_BYTES_MAX:
            break
    return TrainedChunks(await dictionaries.add(tenant, agent_type, samples), agent_type, agents, len(samples))


async def _choose(log: EventLog, tenant: str, agent_type: str, dice: random.Random) -> list[AgentRecord]:
    """A reservoir of agents of the type, in memory of bounded size however many there are."""
    chosen: list[AgentRecord] = []
    seen, after = 0, ""
    while page := await log.store.list_agents(tenant, type=agent_type, after=after, limit=PAGE_AGENTS):
        for record in page:
            seen += 1
            place = len(chosen) if len(chosen) < AGENTS_SAMPLED_MAX else dice.randrange(seen)
            if place < AGENTS_SAMPLED_MAX:
                chosen[place : place + 1] = [record]
        after = page[-1].agent
    dice.shuffle(chosen)
    return chosen
