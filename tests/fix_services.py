"""Real servers for tests. A server that cannot be had fails the test; nothing is skipped.

PERDURE_TEST_SERVICES names the root of servers that run already (or are started there) and stay; else they are started in a
temporary root and removed at the end of the session. Where several processes share the tests (`pytest -n 2`), they share these servers too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from perdure import services
from perdure.services import Service, Services, kafka, state
from perdure.services.model import S3_BUCKET, S3_CREDENTIALS

# Brokers of tests live for seconds: compiled quickly, they need half of the processor's time to come up.
kafka.JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1",)

SHARED_ROOT = "services_root"
"""What the first process of a run tells the others: where the servers are that it will remove."""


PORTS = range(state.PORT_FIRST, state.PORT_LAST)


def ports_of_process(number: int, count: int) -> range:
    """Ports for servers of one of so many processes: what one has found free, no other takes."""
    width = len(PORTS) // count
    return PORTS[number * width : (number + 1) * width]


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    own_ports = ports_of_process(int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    state.PORT_FIRST, state.PORT_LAST = own_ports.start, own_ports.stop

_root_key = pytest.StashKey[Path]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Every process of a run is told the same root."""
    stash = node.config.stash
    if _root_key not in stash:
        stash[_root_key] = _temporary_root()
    node.workerinput[SHARED_ROOT] = str(stash[_root_key])


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last to end is the process that began the others."""
    if root := config.stash.get(_root_key, None):
        _remove(root)


@dataclass(frozen=True)
class PrivateServices:
    """Servers that belong to one test module, which may stop and kill them by `services.stop(name, private.root, ...)`."""

    root: Path
    services: Services


@pytest.fixture(scope="session")
def services_root(pytestconfig: pytest.Config) -> Iterator[Path]:
    """The root of the servers that tests share; they are started by the fixtures that need them."""
    of_the_run = getattr(pytestconfig, "workerinput", {}).get(SHARED_ROOT)
    if shared := os.environ.get("PERDURE_TEST_SERVICES", of_the_run):
        yield Path(shared)
        return
    root = _temporary_root()
    try:
        yield root
    finally:
        _remove(root)


@pytest.fixture(scope="session")
def postgres_url(services_root: Path) -> str:
    """postgresql://... of the shared Postgres; take `fresh_database` for a database of your own."""
    return _started(services_root, "postgres").url


@pytest.fixture(scope="session")
def redis_url(services_root: Path) -> str:
    """redis://... of the shared Redis; use keys of your own."""
    return _started(services_root, "redis").url


@pytest.fixture(scope="session")
def kafka_url(services_root: Path) -> str:
    """Bootstrap address HOST:PORT of the shared Kafka (PERDURE_BUS is `kafka://` and this); use topics of your own."""
    return _started(services_root, "kafka").url.removeprefix("kafka://")


@pytest.fixture
def s3_url(services_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """s3://... of a new empty folder in the bucket of the shared S3 service; its credentials are in the environment."""
    service = _started(services_root, "s3")
    for key, value in S3_CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    folder = f"test-{uuid.uuid4().hex}"
    yield urlunsplit(urlsplit(service.url)._replace(path=f"/{folder}"))
    if service.data_folder:  # of a service that may run on for days
        shutil.rmtree(Path(service.data_folder) / S3_BUCKET / folder, ignore_errors=True)


@pytest.fixture(scope="session")
def drop_database(postgres_url: str) -> Iterator[Callable[[str], None]]:
    """Drops databases of the shared Postgres beside the tests: a drop waits for a checkpoint of the whole server, and no test need do so."""

    def drop(name: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    drops: list[Future[None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="drop-databases") as beside:
        beside.submit(int).result()  # its thread belongs to the session, not to the first test
        yield lambda name: drops.append(beside.submit(drop, name))
    for each in drops:
        each.result()


@pytest.fixture
def fresh_database(postgres_url: str, drop_database: Callable[[str], None]) -> Iterator[str]:
    """URL of a new empty database, dropped afterwards with whatever is still connected to it."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    drop_database(name)


@pytest.fixture(scope="module")
def private_services() -> Iterator[Callable[..., PrivateServices]]:
    """A factory: `private_services("postgres", "kafka", kafka_brokers=3)` starts servers of the module's own; no name means all three."""
    roots: list[Path] = []

    def begin(*only: str, kafka_brokers: int = 1) -> PrivateServices:
        root = _temporary_root()
        roots.append(root)
        names = only or ("postgres", "redis", "kafka")
        return PrivateServices(root, services.up(root=root, only=names, kafka_brokers=kafka_brokers))

    try:
        yield begin
    finally:
        for root in roots:
            _remove(root)


def _temporary_root() -> Path:
    """Open to other users: Postgres must reach its folder when tests run as root."""
    root = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/var/tmp"))
    root.chmod(0o755)
    return root


def _remove(root: Path) -> None:
    services.down(root, wipe=True)
    shutil.rmtree(root, ignore_errors=True)


def _started(root: Path, name: str) -> Service:
    service = getattr(services.up(root=root, only=(name,)), name)
    assert isinstance(service, Service)
    assert service.running
    return service
