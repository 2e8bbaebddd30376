"""Whether a server really answers. Each probe returns the server's version or raises `Unavailable`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, urlsplit

from perdure.errors import ConfigurationError, MissingDependency, Unavailable

__all__ = ["answer", "kafka", "postgres", "redis", "s3"]

PROBE_TIMEOUT_S = 5


def answer(name: str, url: str) -> str:
    """Ask the server of this name at this URL."""
    probes = {"postgres": postgres, "redis": redis, "kafka": kafka, "s3": s3}
    return probes[name](url)


def postgres(url: str) -> str:
    """Connect and ask for the version."""
    try:
        import psycopg
    except ImportError as error:
        raise _extra("psycopg", "postgres") from error
    try:
        with psycopg.connect(url, connect_timeout=PROBE_TIMEOUT_S) as connection:
            return connection.info.parameter_status("server_version") or ""
    except psycopg.Error as error:
        raise Unavailable(f"Postgres does not answer: {_line(error)}") from error


def redis(url: str) -> str:
    """PING and ask for the version."""
    try:
        from redis import Redis, RedisError
    except ImportError as error:
        raise _extra("redis", "redis") from error
    try:
        with Redis.from_url(url, socket_timeout=PROBE_TIMEOUT_S, socket_connect_timeout=PROBE_TIMEOUT_S) as client:
            client.ping()
            return str(client.info("server")["redis_version"])
    except RedisError as error:
        raise Unavailable(f"Redis does not answer: {_line(error)}") from error
    except ValueError as error:
        raise ConfigurationError(f"not a URL of a Redis: {error}", hint="redis://HOST:PORT/0") from error


def kafka(url: str, brokers: Collection[int] = ()) -> str:
    """Ask for the cluster; brokers: the node ids that must be in it, unfenced. The version is not told ('')."""
    bootstrap = url.removeprefix("kafka://")
    _connect_any(bootstrap)
    # In a thread of its own: the caller may be inside a running event loop.
    with ThreadPoolExecutor(1, thread_name_prefix="perdure-services-probe") as executor:
        missing = executor.submit(lambda: asyncio.run(_missing_brokers(bootstrap, brokers))).result()
    if missing:
        raise Unavailable(f"brokers {sorted(missing)} have not joined the Kafka cluster")
    return ""


def s3(url: str, credentials: Mapping[str, str] | None = None) -> str:
    """List the bucket's first page. The version is not told (''). credentials: else those of the environment."""
    try:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise _extra("obstore", "s3") from error
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query))
    named = {key.lower(): value for key, value in (credentials or {}).items()}
    # The settings are those of the URL of a store, see perdure.snapshots.store.
    config = {"region": given.get("region", "us-east-1"), **named, **({"endpoint": given["endpoint"]} if "endpoint" in given else {})}
    options = {"allow_http": True, "timeout": f"{PROBE_TIMEOUT_S}s"}
    try:
        store = S3Store(parts.netloc, config=config, client_options=options, retry_config={"max_retries": 0})  # type: ignore[arg-type]
        obstore.list_with_delimiter(store)
    except (BaseError, OSError) as error:
        raise Unavailable(f"S3 does not answer: {_line(error)[:200]}") from error
    return ""


async def _missing_brokers(bootstrap: str, brokers: Collection[int]) -> set[int]:
    try:
        from aiokafka.client import AIOKafkaClient
        from aiokafka.errors import KafkaError
    except ImportError as error:
        raise _extra("aiokafka", "kafka") from error
    # One metadata request to the very broker that is asked about; the administrator's client would pick any, also one that is down.
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=PROBE_TIMEOUT_S * 1000)
    try:
        await client.bootstrap()
        members = {broker.nodeId for broker in client.cluster.brokers()}
    except (KafkaError, OSError, TimeoutError) as error:
        raise Unavailable(f"Kafka does not answer: {_line(error)}") from error
    finally:
        await client.close()
    return set(brokers) - members


def _connect_any(bootstrap: str) -> None:
    """A plain connect first: it is quiet, where the client logs every refused connection as an error."""
    refused: list[str] = []
    for address in bootstrap.split(","):
        parts = urlsplit(f"//{address}")
        try:
            socket.create_connection((parts.hostname or "", parts.port or 9092), PROBE_TIMEOUT_S).close()
            return
        except OSError as error:
            refused.append(f"{address}: {error.strerror or error}")
    raise Unavailable(f"Kafka does not answer: {'; '.join(refused)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _extra(module: str, extra: str) -> MissingDependency:
    return MissingDependency(f"the Python package {module} is not installed", hint=f"pip install 'perdure[{extra}]'")
