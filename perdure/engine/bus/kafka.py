"""The bus on Kafka: an idempotent producer that is fed with whole batches per partition.

The producer never gives up on a batch that it has taken (that is how it keeps its promise of order), so `publish` gives up waiting instead:
it raises `Unavailable`, remembers what is still on its way, and lets no new batch of that partition in before that has ended. Nothing piles
up while brokers are away. An error that ends the producer (its place in the sequence was lost with a topic) makes a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from perdure.engine.bus.cloudevents import from_message, to_message
from perdure.engine.bus.contract import BusMark, Delivery
from perdure.engine.bus.kafka_closing import stop_client
from perdure.engine.bus.kafka_consumer import KafkaConsumer
from perdure.engine.bus.kafka_settings import REQUEST_TIMEOUT_S, no_answer, parse_url
from perdure.engine.bus.kafka_topic import Topic
from perdure.engine.log.records import SealedEvent
from perdure.errors import ConfigurationError, Unavailable
from perdure.limits import KIB

__all__ = ["KafkaBus"]

BATCH_BYTES: Final = 512 * KIB
"""One batch of one partition; a larger event goes in a batch of its own."""
PUBLISH_TIMEOUT_S: Final = 10.0
START_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 3.0
READ_WAIT_MS: Final = 500
READER_FETCH_WAIT_MS: Final = 20
"""A reader outside a group asks for what is there; a fetch that it leaves behind, at a jump, shall not hold the connection."""
READ_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


class KafkaBus:
    """A `Bus` on one topic; see `parse_url` for the URL."""

    def __init__(self, url: str) -> None:
        self.settings = parse_url(url)
        self._topic = Topic(self.settings)
        self._producer: Any = None
        self._producer_lock = asyncio.Lock()
        self._reader: Any = None
        self._reader_lock = asyncio.Lock()
        self._reader_at: tuple[int, int] | None = None
        self._on_the_way: dict[int, list[asyncio.Future[Any]]] = {}
        self._ends: dict[int, BusMark] = {}

    async def ensure(self, partitions: int) -> None:
        """Make the topic where it is missing."""
        await self._topic.ensure(partitions)

    async def publish(self, partition: int, events: Sequence[SealedEvent]) -> BusMark:
        """Publish in order and wait for all in-sync replicas."""
        if not events:
            return await self.mark(partition)
        known = self._ends.get(partition) or await self.mark(partition)
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                end = await self._publish(partition, events)
        except TimeoutError:
            raise Unavailable(f"Kafka did not acknowledge messages of partition {partition} in time") from None
        # Where the broker put the first message tells whether it is still the topic that we knew.
        moved = end - len(events) != known.end
        mark = BusMark(await self._topic.incarnation(fresh=moved), end)
        self._ends[partition] = mark
        return mark

    async def mark(self, partition: int) -> BusMark:
        """The topic's id and the partition's high-water mark."""
        incarnation = await self._topic.incarnation()
        reader = await self._reading()
        place = TopicPartition(self.settings.topic, partition)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                ends = await reader.end_offsets([place])
        except (KafkaError, TimeoutError, OSError) as error:
            raise Unavailable(f"Kafka does not tell where partition {partition} ends: {error!r}") from error
        mark = self._ends[partition] = BusMark(incarnation, int(ends[place]))
        return mark

    async def read(self, partition: int, after: int, limit: int) -> list[Delivery]:
        """Messages from bus offset `after` on (or the oldest that is left); empty at the end."""
        mark = await self.mark(partition)
        if after >= mark.end:
            return []
        reader = await self._reading()
        place = TopicPartition(self.settings.topic, partition)
        async with self._reader_lock:
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    return await self._read(reader, place, after, limit, mark.end)
            except (KafkaError, TimeoutError) as error:
                self._reader_at = None
                raise Unavailable(f"partition {partition} of the topic cannot be read: {error!r}") from error

    async def consumer(self, group: str) -> KafkaConsumer:
        """A new member of the consumer group, which is known to Kafka as `TOPIC.GROUP`."""
        # A group of the topic's own: installations that share a cluster would rebalance, and wait for, each other's members.
        member = KafkaConsumer(self.settings, self._topic, f"{self.settings.topic}.{group}")
        await member.start()
        return member

    async def close(self) -> None:
        """Wait shortly for what is on its way, then close the connections. Consumers are closed by those who opened them."""
        producer, self._producer = self._producer, None
        reader, self._reader = self._reader, None
        if producer is not None:
            await _stop(producer)
        if reader is not None:
            await _stop(reader)
        await self._topic.close()

    async def _publish(self, partition: int, events: Sequence[SealedEvent]) -> int:
        """The bus offset after the last of them."""
        if waiting := [future for future in self._on_the_way.get(partition, ()) if not future.done()]:
            await asyncio.wait(waiting)
        self._on_the_way[partition] = futures = []
        producer = await self._producing()
        try:
            for batch in _batches(producer, events):
                futures.append(await producer.send_batch(batch, self.settings.topic, partition=partition))
            # Not `gather`: giving up here must not mark as ended what is still on its way.
            await asyncio.wait(futures)
            placed = [future.result() for future in futures]
        except (MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError) as error:
            raise ConfigurationError(f"Kafka refuses messages of partition {partition}: {error!r}") from error
        except KafkaTimeoutError as error:
            raise Unavailable(f"Kafka does not take messages of partition {partition}") from error
        except (KafkaError, OSError) as error:
            await self._discard(producer)
            raise Unavailable(f"Kafka did not take messages of partition {partition}: {error!r}") from error
        finally:
            for future in futures:
                future.add_done_callback(_retrieve)
        return int(placed[-1].offset) + int(batch.record_count())

    async def _producing(self) -> Any:
        async with self._producer_lock:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=0,
                    max_batch_size=BATCH_BYTES,
                    retry_backoff_ms=50,
                    metadata_max_age_ms=30_000,
                    **self.settings.client_options(),
                )
                await _start(producer)
                self._producer = producer
            return self._producer

    async def _discard(self, producer: Any) -> None:
        if self._producer is producer:
            self._producer = None
            self._on_the_way.clear()
            await _stop(producer)

    async def _reading(self) -> Any:
        async with self._reader_lock:
            if self._reader is None:
                reader = AIOKafkaConsumer(
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    retry_backoff_ms=50,
                    fetch_max_wait_ms=READER_FETCH_WAIT_MS,
                    **self.settings.client_options(),
                )
                await _start(reader)
                self._reader, self._reader_at = reader, None
            return self._reader

    async def _read(self, reader: Any, place: TopicPartition, after: int, limit: int, end: int) -> list[Delivery]:
        if self._reader_at != (place.partition, after):
            reader.assign([place])
            reader.seek(place, after)
        while True:
            records = (await reader.getmany(place, timeout_ms=READ_WAIT_MS, max_records=limit)).get(place, [])
            if records or await reader.position(place) >= end:
                break
        self._reader_at = (place.partition, records[-1].offset + 1) if records else None
        return [_delivery(record) for record in records]


def _delivery(record: Any) -> Delivery:
    event, problem = from_message(record.partition, record.key, record.value, record.headers)
    return Delivery(record.partition, record.offset, event, problem)


def _batches(producer: Any, events: Sequence[SealedEvent]) -> Iterator[Any]:
    """Full batches, one after the other, so that never more than one is built ahead of what has been sent."""
    batch = producer.create_batch()
    for event in events:
        message = to_message(event)
        fields = {"key": message.key, "value": message.value, "headers": message.headers, "timestamp": message.timestamp_ms}
        if batch.append(**fields) is None:
            yield batch
            batch = producer.create_batch()
            if batch.append(**fields) is None:
                raise AssertionError("an empty batch takes any message")
    batch.close()
    yield batch


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark the outcome as seen: who published was told already that it is unknown."""
    if not future.cancelled():
        future.exception()


async def _start(client: Any) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await client.start()
    except (KafkaError, TimeoutError, OSError) as error:
        await _stop(client)
        raise no_answer(error) from error


async def _stop(client: Any) -> None:
    """Stop a client, even one whose broker is away and that would wait for it for ever."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await stop_client(client)
    except (KafkaError, TimeoutError, OSError) as error:
        _log.warning("a Kafka client was closed with messages on their way: %r", error)
        sender = getattr(client, "_sender", None)
        if sender is not None and sender.sender_task is not None:
            sender.sender_task.cancel()
        client_of = getattr(client, "client", None)
        if client_of is not None:
            await client_of.close()
