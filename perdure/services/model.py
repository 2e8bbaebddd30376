"""What the services look like: to the caller (`Service`, `Services`) and in the root's `services.json` (`Record`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from perdure.errors import InvalidInput

__all__ = [
    "ALL_NAMES",
    "NAMES",
    "S3_BUCKET",
    "S3_CREDENTIALS",
    "How",
    "Origin",
    "Process",
    "Record",
    "Service",
    "Services",
    "Tell",
    "Way",
    "checked_name",
]

NAMES = ("postgres", "redis", "kafka")
"""What `up` starts when nothing is named."""
ALL_NAMES = (*NAMES, "s3")
S3_BUCKET = "perdure"
S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "perdure", "AWS_SECRET_ACCESS_KEY": "perdure-on-this-machine"}
"""Of the S3 service that is started here, which only this machine reaches."""

How = Literal["fast", "immediate", "kill"]
Origin = Literal["url", "docker", "binary"]
Tell = Callable[[str], None]


class Service(msgspec.Struct, frozen=True):
    """One server. pids: of the processes that run now, for Kafka one per broker; running: every one of its processes is alive."""

    name: str
    url: str
    pids: tuple[int, ...]
    data_folder: str
    log_files: tuple[str, ...]
    running: bool
    version: str
    origin: Origin


class Services(msgspec.Struct, frozen=True):
    """The servers of one root; None where a server was never started there."""

    postgres: Service | None = None
    redis: Service | None = None
    kafka: Service | None = None
    s3: Service | None = None

    def all(self) -> tuple[Service, ...]:
        """The servers that exist."""
        return tuple(service for service in (self.postgres, self.redis, self.kafka, self.s3) if service is not None)

    def environment(self, *, running: bool = False) -> dict[str, str]:
        """The settings of an engine that uses these servers: PERDURE_LOG, PERDURE_BUS, PERDURE_CACHE, PERDURE_STORE with its credentials.

        running: without those that are stopped. They keep their addresses, but an engine would wait for them.
        """
        settings = {"PERDURE_LOG": self.postgres, "PERDURE_BUS": self.kafka, "PERDURE_CACHE": self.redis, "PERDURE_STORE": self.s3}
        found = {key: service for key, service in settings.items() if service is not None and (service.running or not running)}
        urls = {key: service.url for key, service in found.items()}
        return urls | (S3_CREDENTIALS if "PERDURE_STORE" in found and found["PERDURE_STORE"].origin != "url" else {})


class Process(msgspec.Struct, frozen=True):
    """A process that was started here. started: when, in the kernel's own words, so that a recycled pid is recognised."""

    pid: int
    started: str


class Record(msgspec.Struct):
    """What is remembered of a server between calls. Lists have one entry per node (broker); nodes are numbered from 1."""

    name: str
    origin: Literal["docker", "binary"]
    version: str
    data_folder: str
    ports: list[int]
    log_files: list[str]
    processes: list[Process | None]
    controller_ports: list[int] = []
    cluster_id: str = ""
    containers: list[str] = []

    @property
    def nodes(self) -> range:
        """The numbers of its nodes."""
        return range(1, len(self.ports) + 1)

    @property
    def url(self) -> str:
        """Where clients connect."""
        addresses = [f"127.0.0.1:{port}" for port in self.ports]
        if self.name == "postgres":
            return f"postgresql://perdure@{addresses[0]}/perdure"
        if self.name == "redis":
            return f"redis://{addresses[0]}/0"
        if self.name == "s3":
            return f"s3://{S3_BUCKET}?endpoint=http://{addresses[0]}"
        return f"kafka://{','.join(addresses)}"


class Way(Protocol):
    """A way to run one kind of server: as a process of this machine or as a container.

    Every method is called under the root's lock. `launch` and `signal` change the record, which the caller saves.
    """

    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Find the programs (or `MissingDependency`), choose ports, make the data folder."""

    def launch(self, record: Record, node: int) -> None:
        """Start a node that does not run; returns before it answers."""

    def ready(self, record: Record, node: int) -> None:
        """Raise `Unavailable` while the node does not really answer."""

    def alive(self, record: Record, node: int) -> bool:
        """Whether the node that was started here still runs."""

    def pids(self, record: Record) -> tuple[int, ...]:
        """The processes that run now."""

    def signal(self, record: Record, node: int, how: How) -> None:
        """Ask a running node to end; returns before it has ended."""

    def log_tail(self, record: Record, node: int, lines: int) -> str:
        """The last lines of the node's log."""

    def remove(self, record: Record) -> None:
        """Delete the data of a server that does not run."""


def checked_name(name: str) -> str:
    """The name, or `InvalidInput` when there is no such server."""
    if name not in ALL_NAMES:
        raise InvalidInput(f"there is no service named {name!r}", hint=f"one of: {', '.join(ALL_NAMES)}")
    return name
