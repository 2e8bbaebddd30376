"""The topic itself: made where it is missing, and told apart from another of the same name by its id.

A topic that was deleted and made anew has the same name and may soon have as many messages; only its id differs. The client library asks
brokers with an older version of the Metadata request that does not carry ids, so version 10 (Kafka 2.8 and newer) stands here.
"""

from __future__ import annotations

import asyncio
import random
import time
from io import BytesIO
from typing import Any, Final
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import AbstractType, Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from perdure.engine.bus.contract import TOPIC_MISSING
from perdure.engine.bus.kafka_settings import MESSAGE_BYTES_MAX, REQUEST_TIMEOUT_S, KafkaSettings, no_answer
from perdure.errors import ConfigurationError, Unavailable

__all__ = ["Topic", "TopicFacts"]

CREATE_TIMEOUT_S: Final = 15.0
FACTS_AGE_MAX_S: Final = 0.5
"""How old the answer to "which topic is this" may be; partitions ask at the same time and share one answer."""
POLL_S: Final = 0.05
UNKNOWN_TOPIC: Final = 3
"""Kafka's error code UNKNOWN_TOPIC_OR_PARTITION."""


class TopicFacts:
    """What brokers say: the topic's id ('' when there is no topic), its number of partitions, and whether all of them have a leader."""

    def __init__(self, incarnation: str, partitions: int, ready: bool, brokers: int) -> None:
        self.incarnation = incarnation
        self.partitions = partitions
        self.ready = ready
        self.brokers = brokers


class Topic:
    """Asks and makes one topic."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._lock = asyncio.Lock()
        self._facts: TopicFacts | None = None
        self._asked_at = 0.0

    async def incarnation(self, *, fresh: bool = False) -> str:
        """The topic's id. fresh: as of now, else it may be FACTS_AGE_MAX_S old. Unavailable when there is no topic."""
        asked_at = time.monotonic()
        async with self._lock:
            needed = asked_at if fresh else asked_at - FACTS_AGE_MAX_S
            if self._facts is None or self._asked_at < needed or not self._facts.incarnation:
                started_at = time.monotonic()
                self._facts, self._asked_at = await self._ask(), started_at
            facts = self._facts
        if not facts.incarnation:
            raise Unavailable(f"the topic {self._settings.topic} does not exist", reason=TOPIC_MISSING)
        return facts.incarnation

    async def ensure(self, partitions: int) -> None:
        """Make the topic where it is missing and wait until it can be written to."""
        try:
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                facts = await self._ask()
                if not facts.incarnation:
                    await self._create(partitions, facts.brokers)
                while not (facts.incarnation and facts.ready):
                    await asyncio.sleep(POLL_S)
                    facts = await self._ask()
        except TimeoutError:
            raise Unavailable(f"the topic {self._settings.topic} has no leader for every partition") from None
        if facts.partitions != partitions:
            hint = "the topic has as many partitions as the log; choose another with ?topic=NAME"
            raise ConfigurationError(f"the topic {self._settings.topic} has {facts.partitions} partitions, not {partitions}", hint=hint)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _create(self, partitions: int, brokers: int) -> None:
        replicas = min(self._settings.replicas, brokers)
        hours = self._settings.retention_hours
        configs = {
            "min.insync.replicas": str(min(2, replicas)),
            "max.message.bytes": str(MESSAGE_BYTES_MAX),
            "retention.ms": "-1" if hours < 0 else str(hours * 3_600_000),
            # Retention counts from publication: events published again after a loss are old, but new on this topic.
            "message.timestamp.type": "LogAppendTime",
            "cleanup.policy": "delete",
        }
        topic = NewTopic(self._settings.topic, partitions, replicas, topic_configs=configs)
        admin = AIOKafkaAdminClient(**self._settings.client_options())
        try:
            await admin.start()
            answer = await admin.create_topics([topic])
        except KafkaError as error:
            raise Unavailable(f"the topic {self._settings.topic} cannot be made: {error!r}") from error
        finally:
            await admin.close()
        for _, code, message in answer.topic_errors:
            self._check_created(code, message)

    def _check_created(self, code: int, message: str | None) -> None:
        if code == 0 or for_code(code) is TopicAlreadyExistsError:
            return
        kind = for_code(code)
        text = f"the topic {self._settings.topic} cannot be made: {message or kind.__name__}"
        if getattr(kind, "retriable", False):
            raise Unavailable(text)
        raise ConfigurationError(text)

    async def _ask(self) -> TopicFacts:
        """Ask any broker that answers."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await self._send()
        except (KafkaError, OSError, TimeoutError) as error:
            raise no_answer(error) from error
        topic = response.topics[0]
        code, _, identifier, _, partitions, _, _ = topic
        if code == UNKNOWN_TOPIC:
            return TopicFacts("", 0, False, len(response.brokers))
        if code != 0:
            raise Unavailable(f"the topic {self._settings.topic} cannot be read: {for_code(code).__name__}")
        ready = all(each[0] == 0 and each[2] >= 0 for each in partitions)
        return TopicFacts(str(identifier), len(partitions), ready, len(response.brokers))

    async def _send(self) -> Any:
        if self._client is None:
            client = AIOKafkaClient(**self._settings.client_options())
            try:
                await client.bootstrap()
            except BaseException:
                await client.close()
                raise
            self._client = client
        nodes = [broker.nodeId for broker in self._client.cluster.brokers()]
        random.shuffle(nodes)
        for node in nodes:
            if await self._client.ready(node):
                return await self._client.send(node, _MetadataRequest(self._settings.topic))
        # No broker of the known ones lives: the next time starts again from the addresses of the URL.
        client, self._client = self._client, None
        await client.close()
        raise Unavailable("no Kafka broker can be reached")


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class _MetadataResponse_v10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync_replicas", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest_v10(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequest_v10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequest_v10]) -> _MetadataRequest_v10:
        # An id of zeros: asked by name.
        return request_struct_class([(UUID(int=0), self._topic, {})], False, False, False, {})
