"""Compression dictionaries from a tenant's own events: on request, and by itself once there is enough to learn from.

By itself: every process looks at a tenant after each `limits.TRAINING_LOOK_EVENTS` events that it appends there. A tenant that has reached
`limits.TRAINING_EVENTS_MIN` events gets its first dictionary, and another one whenever it has grown `limits.TRAINING_GROWTH` times since the
last, at most `limits.TRAINING_ROUNDS_MAX` in all. A lease and a record of what was done see to it that several processes do it once. What was
written before stays readable: dictionaries are kept for ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final
from uuid import uuid4

import msgspec

from perdure import limits
from perdure.engine.log.codec import encode_payload
from perdure.engine.log.contract import LogStore
from perdure.engine.log.marks import mark_of
from perdure.engine.log.records import AgentRecord, Document, EventFilter
from perdure.engine.vault import Vault
from perdure.errors import InvalidInput, NotFound, PerdureError

__all__ = ["TRAINING_SCOPE", "Trained", "Trainer", "train"]

TRAINING_SCOPE: Final = "training"
"""Of control documents; a document's name is the tenant."""
AGENTS_SAMPLED_MAX: Final = 2_000
EVENTS_PER_AGENT_MAX: Final = 200
PAGE_AGENTS: Final = 500
LEASE_S: Final = 120.0
TENANTS_COUNTED_MAX: Final = 10_000

_logger = logging.getLogger(__name__)


class Trained(msgspec.Struct, frozen=True):
    """A dictionary that is used from now on. samples: events that it was made from."""

    dictionary: int
    samples: int


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """What was trained last: how often in all, which dictionary, and how many events the tenant had."""

    rounds: int
    dictionary: int
    events: int


class _Survey(msgspec.Struct):
    """events: of the agents that were looked at. chosen: some of them, each as likely as another."""

    events: int = 0
    agents: int = 0
    chosen: list[AgentRecord] = msgspec.field(default_factory=list)


async def train(vault: Vault, tenant: str, *, seed: int = 0, bytes_max: int = limits.TRAINING_BYTES_MAX) -> Trained:
    """Make a dictionary from a sample of the tenant's events. Raises NotFound (no such tenant), InvalidInput (too few events)."""
    survey = await _survey(vault.store, tenant, None, seed)
    if not survey.agents:
        raise NotFound(f"tenant {tenant!r} has no agents", tenant=tenant)
    return await _train(vault, tenant, survey, bytes_max)


class Trainer:
    """Trains by itself what an engine's appends make worth it. Start nothing: `note` does, and `close` waits for what it started."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._holder = uuid4().hex
        self._left: dict[str, int] = {}
        self._waiting: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._training = False

    def note(self, tenant: str, events: int) -> None:
        """So many events are being appended."""
        left = self._left.get(tenant)
        if left is None:
            # A random start, so that processes that live for a few events only take part as well: one look per so many events, whoever writes.
            left = random.randint(1, limits.TRAINING_LOOK_EVENTS)  # noqa: S311 - not a secret
            if len(self._left) >= TENANTS_COUNTED_MAX:
                del self._left[next(iter(self._left))]
        self._left[tenant] = left - events
        if left <= events and not self._closing:
            self._left[tenant] = limits.TRAINING_LOOK_EVENTS
            self._waiting[tenant] = None
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), name="perdure-training")

    async def wait(self) -> None:
        """Until it has looked at every tenant that waits for it."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """Begin nothing more, and wait for a training that is under way; a look at a tenant is broken off."""
        self._closing = True
        self._waiting.clear()
        if self._task is not None:
            if not self._training:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            tenant = next(iter(self._waiting))
            del self._waiting[tenant]
            try:
                await self._look(tenant)
            except PerdureError as problem:
                # Nobody waits for this one, and nothing is lost without it: the next look tries again.
                _logger.warning("no dictionary was trained for tenant %r: %s", tenant, problem.message)
            except Exception:
                _logger.exception("no dictionary was trained for tenant %r", tenant)

    async def _look(self, tenant: str) -> None:
        wanted = await self._wanted(tenant)
        if wanted is None or self._closing:
            return
        survey = await _survey(self._vault.store, tenant, wanted, random.getrandbits(32))
        missing = wanted - survey.events
        if missing > 0:
            self._left[tenant] = max(limits.TRAINING_LOOK_EVENTS, missing // 4)
            return
        lease = await self._vault.store.acquire_lease(f"{TRAINING_SCOPE}/{tenant}", self._holder, LEASE_S)
        if lease is None:
            return
        try:
            # Somebody may have done it between the look and the lease.
            if await self._wanted(tenant) == wanted and not self._closing:
                self._training = True
                await _train(self._vault, tenant, survey, limits.TRAINING_OWN_BYTES_MAX)
        except InvalidInput as problem:
            _logger.info("tenant %r has too little to learn from yet: %s", tenant, problem.message)
        finally:
            self._training = False
            await self._vault.store.release_lease(lease)

    async def _wanted(self, tenant: str) -> int | None:
        """How many events the tenant must have for its next dictionary; None: it gets no more. Takes in what others have trained."""
        document = await self._vault.store.get_document(TRAINING_SCOPE, tenant)
        record = _decode(document)
        if record.dictionary and (await self._vault.book.ensure(tenant)).find(record.dictionary) is None:
            await self._vault.book.load(tenant)
        if record.rounds >= limits.TRAINING_ROUNDS_MAX:
            self._left[tenant] = 2**62
            return None
        return max(limits.TRAINING_EVENTS_MIN, record.events * limits.TRAINING_GROWTH)


async def _survey(store: LogStore, tenant: str, enough: int | None, seed: int) -> _Survey:
    """Look at the tenant's agents, until there are enough events."""
    survey = _Survey()
    # Seeded, so that training the same log again samples the same events.
    choice = random.Random(seed)  # noqa: S311 - not a secret
    after = ""
    while page := await store.list_agents(tenant, after=after, limit=PAGE_AGENTS):
        after = page[-1].agent
        # Of those that are on their way here nothing may be kept: their transfer may be broken off.
        page = [record for record in page if record.data_key and mark_of(record.owner) is None]
        for record, head in zip(page, await store.heads(page) if page else [], strict=True):
            survey.events += head.version
            survey.agents += 1
            if len(survey.chosen) < AGENTS_SAMPLED_MAX:
                survey.chosen.append(record)
            elif (place := choice.randrange(survey.agents)) < AGENTS_SAMPLED_MAX:
                survey.chosen[place] = record
        if enough is not None and survey.events >= enough:
            break
    choice.shuffle(survey.chosen)
    return survey


async def _train(vault: Vault, tenant: str, survey: _Survey, bytes_max: int) -> Trained:
    samples: list[bytes] = []
    size_bytes = 0
    for record in survey.chosen:
        sealed = await vault.store.read_agent(record, EventFilter(), EVENTS_PER_AGENT_MAX)
        payloads = [encode_payload(event) for event in await vault.open_all(sealed)]
        payloads = [payload for payload in payloads if len(payload) <= limits.INLINE_BYTES_MAX]  # larger values stand elsewhere
        samples += payloads
        size_bytes += sum(map(len, payloads))
        if size_bytes > bytes_max:
            break
        await asyncio.sleep(0)
    dictionary = await vault.book.add(tenant, samples)
    await _write_record(vault.store, tenant, dictionary, survey.events)
    return Trained(dictionary, len(samples))


async def _write_record(store: LogStore, tenant: str, dictionary: int, events: int) -> None:
    for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
        document = await store.get_document(TRAINING_SCOPE, tenant)
        record = _decode(document)
        value = msgspec.msgpack.encode(_Record(record.rounds + 1, max(dictionary, record.dictionary), max(events, record.events)))
        if await store.put_document(TRAINING_SCOPE, tenant, value, expected=document.revision if document else 0) is not None:
            return


def _decode(document: Document | None) -> _Record:
    return _Record(0, 0, 0) if document is None else msgspec.msgpack.decode(document.value, type=_Record)
