"""What all servers that run as processes of this machine have in common."""

from __future__ import annotations

import shutil
import signal
from abc import ABC, abstractmethod
from pathlib import Path

from perdure.services import process
from perdure.services.model import How, Record, Tell

__all__ = ["Binary", "tail"]

TAIL_BYTES = 1_000_000


class Binary(ABC):
    """A way (see `model.Way`) whose nodes are processes; each server fills in `create`, `launch` and `ready`."""

    @abstractmethod
    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Find the programs (or `MissingDependency`), choose ports, make the data folder; nothing runs yet."""

    @abstractmethod
    def launch(self, record: Record, node: int) -> None:
        """Start a node that does not run; returns before it answers."""

    @abstractmethod
    def ready(self, record: Record, node: int) -> None:
        """Raise `Unavailable` while the node does not really answer."""

    def alive(self, record: Record, node: int) -> bool:
        """Whether the node that was started here still runs."""
        return process.alive(record.processes[node - 1])

    def pids(self, record: Record) -> tuple[int, ...]:
        """The processes that run now, in the order of the nodes."""
        return tuple(found.pid for found in record.processes if found is not None and process.alive(found))

    def signal(self, record: Record, node: int, how: How) -> None:
        """fast: the server's own orderly end; immediate and kill: none."""
        process.send(record.processes[node - 1], signal.SIGTERM if how == "fast" else signal.SIGKILL)

    def log_tail(self, record: Record, node: int, lines: int) -> str:
        """The last lines of the node's log."""
        return tail(Path(record.log_files[node - 1]), lines)

    def remove(self, record: Record) -> None:
        """Delete data and logs."""
        if Path(record.data_folder).exists():
            shutil.rmtree(record.data_folder)
        for log_file in record.log_files:
            Path(log_file).unlink(missing_ok=True)


def tail(path: Path, lines: int) -> str:
    """The last lines of a file, at most TAIL_BYTES; '' when there is no such file yet."""
    if not path.exists():
        return ""
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - TAIL_BYTES))
        text = handle.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
