"""A member of a Kafka consumer group that notices when the topic was made anew.

A committed position is a bare number; on a recreated topic it would skip messages. So every commit carries the topic's id as its metadata,
and a partition whose commit was made on another topic starts from the beginning. Redelivery is harmless: versions drop what is old.

Brokers are told of positions a few times a second, not with every commit: a request for each small batch costs more than projecting it.
Positions belong to one joining of the group; those that were handled on a topic that is gone are forgotten with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from perdure.engine.bus.cloudevents import from_message
from perdure.engine.bus.contract import Delivery
from perdure.engine.bus.kafka_closing import stop_client
from perdure.engine.bus.kafka_settings import REQUEST_TIMEOUT_S, KafkaSettings
from perdure.engine.bus.kafka_topic import Topic
from perdure.errors import Unavailable
from perdure.limits import MIB

__all__ = ["KafkaConsumer"]

SESSION_TIMEOUT_MS: Final = 10_000
HEARTBEAT_MS: Final = 2_000
INCARNATION_CHECK_S: Final = 2.0
START_TIMEOUT_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 5.0
FETCH_BYTES: Final = 2 * MIB
"""Fetched ahead per partition; what a member holds while its consumer stands still is about twice that for each."""
FETCH_WAIT_MS: Final = 100
"""How long a broker holds a fetch when it has nothing; it answers at once when a message arrives."""
KEEP_INTERVAL_S: Final = 0.1
"""How soon committed positions are kept by the broker: what a killed member's successor receives again at most."""

_log = logging.getLogger(__name__)


class KafkaConsumer:
    """A `Consumer` of the topic."""

    def __init__(self, settings: KafkaSettings, topic: Topic, group: str) -> None:
        self._settings = settings
        self._topic = topic
        self._group = group
        self._consumer: Any = None
        self._admin: Any = None
        self._incarnation = ""
        self._checked_at = 0.0
        self._delivered: dict[int, int] = {}
        self._handled: dict[int, int] = {}
        self._kept_at = 0.0

    async def start(self) -> None:
        """Join the group. Unavailable when no broker answers."""
        self._incarnation = await self._topic.incarnation(fresh=True)
        self._checked_at = time.monotonic()
        self._delivered, self._handled = {}, {}
        options = self._settings.client_options()
        self._admin = AIOKafkaAdminClient(**options)
        self._consumer = AIOKafkaConsumer(
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            retry_backoff_ms=50,
            metadata_max_age_ms=30_000,
            **options,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._admin.start()
                self._consumer.subscribe([self._settings.topic], listener=_Listener(self))
                await self._consumer.start()
        except (KafkaError, TimeoutError, OSError) as error:
            await self.close()
            raise Unavailable(f"the consumer group {self._group} cannot be joined: {error!r}") from error

    async def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to `limit` messages; empty at the timeout, also while brokers are away."""
        await self._check_incarnation()
        found: Any = {}
        if self._handled:
            # Positions wait for the next messages, but not for ever.
            until = self._kept_at + KEEP_INTERVAL_S
            found = await self._fetched(limit, min(timeout_s, max(0.0, until - time.monotonic())))
            if time.monotonic() >= until:
                await self._keep()
        if not found:
            found = await self._fetched(limit, timeout_s)
        deliveries = []
        for place, records in found.items():
            for record in records:
                event, problem = from_message(record.partition, record.key, record.value, record.headers)
                deliveries.append(Delivery(record.partition, record.offset, event, problem))
            self._delivered[place.partition] = records[-1].offset + 1
        return deliveries

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Note positions; the broker keeps them within KEEP_INTERVAL_S, before a partition is given up, and at the end."""
        for partition, position in positions.items():
            if position <= self._delivered.get(partition, 0):
                self._handled[partition] = position
        if time.monotonic() - self._kept_at >= KEEP_INTERVAL_S:
            await self._keep()

    async def _keep(self) -> None:
        """Let the broker keep what is noted. What this member has lost to another in the meantime is left to that one."""
        self._kept_at = time.monotonic()
        topic, assigned = self._settings.topic, self._consumer.assignment()
        handled, self._handled = self._handled, {}
        offsets = {
            TopicPartition(topic, partition): (position, self._incarnation)
            for partition, position in handled.items()
            if TopicPartition(topic, partition) in assigned
        }
        if not offsets:
            return
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            _log.info("the group %s was rebalanced before a commit; its messages come again: %r", self._group, error)
        except (KafkaError, TimeoutError) as error:
            self._handled = handled | self._handled
            raise Unavailable(f"positions of the group {self._group} cannot be kept: {error!r}") from error

    async def _fetched(self, limit: int, timeout_s: float) -> Any:
        try:
            return await self._consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=limit)
        except KafkaError as error:
            raise Unavailable(f"the topic cannot be consumed: {error!r}") from error

    async def lag(self) -> dict[int, int]:
        """Per assigned partition, messages published and not committed."""
        places = sorted(self._consumer.assignment())
        if not places:
            return {}
        await self._keep()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                ends = await self._consumer.end_offsets(places)
                starts = await self._consumer.beginning_offsets(places)
                kept = await self._kept()
        except (KafkaError, TimeoutError) as error:
            raise Unavailable(f"the lag of the group {self._group} cannot be told: {error!r}") from error
        return {place.partition: max(0, ends[place] - max(starts[place], kept.get(place, 0))) for place in places}

    async def close(self) -> None:
        """Leave the group; what was committed is kept."""
        if self._consumer is not None:
            await self.on_revoked()
        consumer, self._consumer = self._consumer, None
        admin, self._admin = self._admin, None
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if consumer is not None:
                    await stop_client(consumer)
        except (KafkaError, TimeoutError) as error:
            _log.warning("a member of %s left without telling the group: %r", self._group, error)
        if admin is not None:
            await admin.close()

    async def on_revoked(self) -> None:
        """Keep what is noted while the partitions are still this member's."""
        try:
            await self._keep()
        except Unavailable as error:
            _log.warning("the next member receives messages again: %s", error)

    async def on_assigned(self, places: list[TopicPartition]) -> None:
        """Go to the kept positions; to the beginning where they were kept on another topic."""
        for place in places:
            self._delivered.pop(place.partition, None)
        if not places:
            return
        try:
            kept = await self._kept()
        except KafkaError as error:
            # From the beginning is never wrong, only slower.
            _log.warning("positions of the group %s cannot be read, it starts from the beginning: %r", self._group, error)
            kept = {}
        for place in places:
            self._consumer.seek(place, kept.get(place, 0))

    async def _kept(self) -> dict[TopicPartition, int]:
        """Committed positions on this very topic."""
        found: dict[TopicPartition, OffsetAndMetadata] = await self._admin.list_consumer_group_offsets(self._group)
        return {place: each.offset for place, each in found.items() if each.metadata == self._incarnation and each.offset >= 0}

    async def _check_incarnation(self) -> None:
        if self._consumer is None:  # an earlier start over failed
            await self.start()
        if time.monotonic() - self._checked_at < INCARNATION_CHECK_S:
            return
        self._checked_at = time.monotonic()
        if await self._topic.incarnation() != self._incarnation:
            _log.warning("the topic %s was made anew; the group %s starts from its beginning", self._settings.topic, self._group)
            self._handled = {}
            await self.close()
            await self.start()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, owner: KafkaConsumer) -> None:
        self._owner = owner

    async def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002 - the shape of a listener
        await self._owner.on_revoked()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._owner.on_assigned(sorted(assigned))
