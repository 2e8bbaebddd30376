"""The bus between the log and its projections: Kafka, or in-process."""

from __future__ import annotations

from urllib.parse import urlsplit

from perdure.engine.bus.contract import Bus
from perdure.engine.bus.memory import MemoryBus
from perdure.errors import ConfigurationError

__all__ = ["open_bus"]


async def open_bus(url: str) -> Bus:
    """The bus of a URL: `memory://`, or `kafka://HOST:PORT[,HOST:PORT]?topic=NAME`. Servers are first spoken to when they are needed."""
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryBus()
    if scheme == "kafka":
        from perdure.engine.bus.kafka import KafkaBus

        return KafkaBus(url)
    raise ConfigurationError(f"not a bus: {url!r}", hint="memory:// or kafka://HOST:PORT")
