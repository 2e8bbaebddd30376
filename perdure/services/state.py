"""The root folder of a set of services: where it is, its lock, its `services.json`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from perdure.errors import ConfigurationError, Unavailable
from perdure.services.model import Record

__all__ = ["default_root", "free_ports", "load", "locked", "port_is_free", "save"]

LOCK_WAIT_S = 300.0
PORT_TRIES = 1000
# Servers listen below the range that the kernel takes the ports of outgoing connections from: so a port stays free while
# its server is stopped, and a client that reconnects in a loop cannot connect to itself.
PORT_FIRST, PORT_LAST = 15_000, 30_000

Records = dict[str, Record]


def default_root() -> Path:
    """$PERDURE_SERVICES, else perdure/services in the user's data folder."""
    if named := os.environ.get("PERDURE_SERVICES"):
        return Path(named).expanduser().absolute()
    data_home = os.environ.get("XDG_DATA_HOME")
    return (Path(data_home) if data_home else Path.home() / ".local" / "share") / "perdure" / "services"


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the root's lock, among threads and processes; `Unavailable` when another holds it for LOCK_WAIT_S."""
    deadline = time.monotonic() + LOCK_WAIT_S
    path = root / "lock"
    while True:
        # Readable for all whatever the umask: Postgres may have to pass through it as another user.
        if not root.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o755)
        with path.open("ab") as handle:
            _acquire(handle.fileno(), deadline, root)
            if _is_current(handle.fileno(), path):
                yield
                return
        # The lock's file was removed with the root by whom we waited for: what we hold guards nothing.


def _acquire(descriptor: int, deadline: float, root: Path) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                hint = "another command is starting or stopping them; try again when it has ended"
                raise Unavailable(f"the services in {root} are locked", hint=hint) from None
            time.sleep(0.05)


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def load(root: Path) -> Records:
    """The records of the root, by name; empty when nothing was started there."""
    path = root / "services.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return msgspec.json.decode(content, type=Records)
    except msgspec.DecodeError as error:
        hint = "stop its servers by hand, then remove the folder"
        raise ConfigurationError(f"{path} is damaged: {error}", hint=hint) from error


def save(root: Path, records: Records) -> None:
    """Replace the records atomically."""
    path, fresh = root / "services.json", root / "services.json.new"
    with fresh.open("wb") as handle:
        handle.write(msgspec.json.format(msgspec.json.encode(records), indent=2))
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)


def free_ports(count: int) -> list[int]:
    """Distinct ports of 127.0.0.1 on which nobody listens now."""
    found: list[int] = []
    for _ in range(PORT_TRIES):
        port = random.randrange(PORT_FIRST, PORT_LAST)  # noqa: S311 - not a secret
        if port not in found and port_is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise Unavailable(f"no {count} free ports between {PORT_FIRST} and {PORT_LAST}")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
