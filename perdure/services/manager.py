"""Start, stop and look at the servers of one root."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from perdure.errors import ConfigurationError, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from perdure.services import docker, probe, state
from perdure.services.kafka import Kafka
from perdure.services.model import ALL_NAMES, NAMES, How, Record, Service, Services, Tell, Way, checked_name
from perdure.services.postgres import Postgres
from perdure.services.redis import Redis
from perdure.services.s3 import S3

__all__ = ["down", "logs", "start", "status", "stop", "up"]

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
DOWN_TIMEOUT_S = 30.0
POLL_S = 0.05
ERROR_LOG_LINES = 5

_BINARIES: dict[str, Way] = {"postgres": Postgres(), "redis": Redis(), "kafka": Kafka(), "s3": S3()}


def up(
    *,
    root: Path | None = None,
    only: Iterable[str] = NAMES,
    kafka_brokers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Services:
    """Start what does not run yet and wait until it answers.

    Each server is taken from its URL (PERDURE_SERVICES_POSTGRES_URL, _REDIS_URL, _KAFKA_URL, _S3_URL), else from Docker, else from
    the machine's own programs. Ports and data are kept between calls. only: names; kafka_brokers: 1 or 3, a cluster that
    has more already is fine. Raises `MissingDependency` (with the packages to install), `Unavailable`, `ConfigurationError`.
    """
    names = [checked_name(name) for name in dict.fromkeys(only)]
    if kafka_brokers not in (1, 3):
        raise InvalidInput(f"Kafka runs with 1 or 3 brokers, not {kafka_brokers}")
    tell = progress or (lambda _: None)
    with _records(_folder(root)) as (folder, records):
        for name in names:
            if url := _given_url(name):
                tell(f"{name}: using {_without_password(url)}")
                probe.answer(name, url)
            else:
                _launch_missing(folder, records, name, kafka_brokers, tell)
        # All were started before the first is waited for: they come up side by side.
        for name in names:
            if not _given_url(name):
                _wait_ready(records[name], records[name].nodes)
                tell(f"{name}: {records[name].url}")
        return _view(records)


def down(root: Path | None = None, *, wipe: bool = False) -> None:
    """Stop what was started here, the hard way if it does not end by itself; wipe: delete all data as well."""
    folder = _folder(root)
    if not folder.is_dir():
        return
    with _records(folder) as (_, records):
        for record in records.values():
            try:
                _end(record, record.nodes, "kill" if wipe else "fast", DOWN_TIMEOUT_S)
            except DeadlineExceeded:
                _end(record, record.nodes, "kill", DOWN_TIMEOUT_S)
        if wipe:
            for record in records.values():
                _way(record).remove(record)
            records.clear()
    if wipe:
        _remove_root(folder)


def status(root: Path | None = None) -> Services:
    """What is there and whether it runs; starts nothing."""
    return _view(state.load(_folder(root)))


def logs(root: Path | None = None, name: str = "postgres", lines: int = 100) -> str:
    """The last lines of a server's log; for several brokers one part per broker, headed by the log's name."""
    record = _existing(state.load(_folder(root)), name)
    parts = {node: _way(record).log_tail(record, node, lines) for node in record.nodes}
    if len(parts) == 1:
        return parts[1]
    return "\n".join(f"==> {record.log_files[node - 1]} <==\n{text}" for node, text in parts.items())


def stop(name: str, root: Path | None = None, *, how: How = "fast", broker: int | None = None) -> None:
    """Stop one server, or one broker (from 1) of Kafka, and wait for its end; data and ports stay.

    how: `fast` is orderly; `immediate` without a clean end (Postgres: its own immediate mode); `kill` is SIGKILL to all
    its processes. Raises `DeadlineExceeded` when it does not end.
    """
    if how not in ("fast", "immediate", "kill"):
        raise InvalidInput(f"a server cannot be stopped by {how!r}", hint="fast, immediate or kill")
    with _records(_folder(root)) as (_, records):
        record = _existing(records, name)
        _end(record, _nodes(record, broker), how, STOP_TIMEOUT_S)


def start(name: str, root: Path | None = None, broker: int | None = None) -> Service:
    """Start a stopped server (or one broker) again, on the same port and data, and wait until it answers.

    A broker is not waited for while too few brokers run for any of them to answer.
    """
    with _records(_folder(root)) as (folder, records):
        record = _existing(records, name)
        nodes = _nodes(record, broker)
        _launch(folder, records, record, nodes)
        _wait_ready(record, nodes)
        return _service(record)


@contextlib.contextmanager
def _records(folder: Path) -> Iterator[tuple[Path, state.Records]]:
    """The records, under the lock. They are saved at the end also when it fails: what was started must be stoppable."""
    with state.locked(folder):
        records = state.load(folder)
        try:
            yield folder, records
        finally:
            state.save(folder, records)


def _launch_missing(folder: Path, records: state.Records, name: str, brokers: int, tell: Tell) -> None:
    nodes = brokers if name == "kafka" else 1
    record = records.get(name)
    if record is None:
        way = docker.Docker(name) if nodes == 1 and name in docker.IMAGES and docker.available() else _BINARIES[name]
        record = records[name] = way.create(folder, nodes, tell)
        state.save(folder, records)
    if len(record.ports) < nodes:
        message = f"the Kafka in {folder} has {len(record.ports)} broker, {nodes} are asked for"
        raise ConfigurationError(message, hint="choose another --root, or begin anew: perdure services down --wipe")
    if any(not _way(record).alive(record, node) for node in record.nodes):
        tell(f"{name}: starting")
    _launch(folder, records, record, record.nodes)


def _launch(folder: Path, records: state.Records, record: Record, nodes: Iterable[int]) -> None:
    for node in nodes:
        if _way(record).alive(record, node):
            continue
        if record.origin == "binary" and not Path(record.data_folder).exists():
            message = f"the data of {record.name} in {record.data_folder} were removed"
            raise Unavailable(message, hint="begin anew: perdure services down --wipe")
        port = record.ports[node - 1]
        if not state.port_is_free(port):
            message = f"port {port} of 127.0.0.1, which {record.name} had, is used by another process"
            raise Unavailable(message, hint="end that process, or begin anew: perdure services down --wipe")
        _way(record).launch(record, node)
        state.save(folder, records)  # at once: whatever happens next, this process is known


def _wait_ready(record: Record, nodes: Iterable[int]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    for node in nodes:
        while True:
            try:
                _way(record).ready(record, node)
                break
            except Unavailable as error:
                last = error
            if not _way(record).alive(record, node):
                raise Unavailable(f"{record.name} ended while it started", hint=_log_hint(record, node)) from last
            if time.monotonic() > deadline:
                message = f"{record.name} does not answer {READY_TIMEOUT_S:.0f} s after its start: {last.message}"
                raise DeadlineExceeded(message, hint=_log_hint(record, node)) from last
            time.sleep(POLL_S)


def _log_hint(record: Record, node: int) -> str:
    return "its log ends: " + " | ".join(_way(record).log_tail(record, node, ERROR_LOG_LINES).splitlines())


def _end(record: Record, nodes: Iterable[int], how: How, timeout_s: float) -> None:
    """End the nodes and wait for each; in an orderly end one after the other, so that brokers have a majority as long as possible."""
    running = [node for node in nodes if _way(record).alive(record, node)]
    for batch in [[node] for node in running] if how == "fast" else [running]:
        for node in batch:
            _way(record).signal(record, node, how)
        deadline = time.monotonic() + timeout_s
        while left := [node for node in batch if _way(record).alive(record, node)]:
            if time.monotonic() > deadline:
                message = f"{record.name} (node {left[0]}) has not ended {timeout_s:.0f} s after it was asked to"
                raise DeadlineExceeded(message, hint="how='kill' ends it at once")
            time.sleep(POLL_S)


def _remove_root(folder: Path) -> None:
    """Our own files; the folder itself only when nobody else keeps anything in it."""
    for name in ("services.json", "services.json.new", "lock"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def _view(records: state.Records) -> Services:
    found: dict[str, Service] = {}
    for name in ALL_NAMES:
        if url := _given_url(name):
            found[name] = _foreign(name, url)
        elif name in records:
            found[name] = _service(records[name])
    return Services(**found)


def _service(record: Record) -> Service:
    way = _way(record)
    return Service(
        name=record.name,
        url=record.url,
        pids=way.pids(record),
        data_folder=record.data_folder,
        log_files=tuple(record.log_files),
        running=all(way.alive(record, node) for node in record.nodes),
        version=record.version,
        origin=record.origin,
    )


def _foreign(name: str, url: str) -> Service:
    """A server that was given by its URL: used as it is."""
    try:
        version, running = probe.answer(name, url), True
    except Unavailable:
        version, running = "", False
    return Service(name, url, (), "", (), running, version, "url")


def _existing(records: state.Records, name: str) -> Record:
    if _given_url(checked_name(name)):
        variable = _variable(name)
        raise ConfigurationError(f"{name} is given by {variable}, it is not ours to control", hint=f"unset {variable}")
    if name not in records:
        raise NotFound(f"{name} was never started here", hint="perdure services up")
    return records[name]


def _nodes(record: Record, broker: int | None) -> list[int]:
    if broker is None:
        return list(record.nodes)
    if record.name != "kafka" or broker not in record.nodes:
        raise InvalidInput(f"{record.name} has no broker {broker}", hint=f"brokers of kafka: 1 to {len(record.ports)}")
    return [broker]


def _way(record: Record) -> Way:
    return docker.Docker(record.name) if record.origin == "docker" else _BINARIES[record.name]


def _given_url(name: str) -> str | None:
    url = os.environ.get(_variable(name))
    if url and name == "kafka" and "://" not in url:
        return f"kafka://{url}"
    return url or None


def _variable(name: str) -> str:
    return f"PERDURE_SERVICES_{name.upper()}_URL"


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:…{at}{tail}" if ":" in head.partition("://")[2] else url


def _folder(root: Path | None) -> Path:
    return state.default_root() if root is None else Path(root).absolute()
