"""Processes that outlive their parent and are recognised again later, so that nothing else is ever killed in their place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import Unavailable
from perdure.services.model import Process

__all__ = ["alive", "children", "send", "spawn", "started"]

# Handles of our own children: polled when their life is asked for, so that a dead one is reaped and not a zombie for ever.
_handles: dict[int, subprocess.Popen[bytes]] = {}

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def spawn(command: Sequence[str], *, log_file: Path, folder: Path, user: str | None = None) -> Process:
    """Start a server in its own session, its output appended to log_file; user: run as, when it is not our own."""
    identity = {} if user is None else {"user": user, "group": _group(user), "extra_groups": []}
    with log_file.open("ab") as log:
        handle = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            **identity,  # type: ignore[call-overload]
        )
    _handles[handle.pid] = handle
    moment = started(handle.pid)
    if moment is None:
        raise Unavailable(f"{command[0]} ended as soon as it was started", hint=f"see {log_file}")
    return Process(handle.pid, moment)


def alive(process: Process | None) -> bool:
    """Whether this very process still runs; a recycled pid and a zombie do not count."""
    if process is None:
        return False
    handle = _handles.get(process.pid)
    if handle is not None and handle.poll() is not None:
        del _handles[process.pid]
    return started(process.pid) == process.started


def send(process: Process | None, number: signal.Signals) -> None:
    """Signal this very process; nothing when it is gone."""
    if process is not None and alive(process):
        with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
            os.kill(process.pid, number)


def children(process: Process) -> list[Process]:
    """The direct children that run now."""
    pids = [pid for pid, parent in _parents().items() if parent == process.pid]
    return [Process(pid, moment) for pid in pids if (moment := started(pid)) is not None]


def started(pid: int) -> str | None:
    """When the process was started, unique for a pid on this machine; None when it does not run (any more)."""
    if not _BOOT_ID.exists():
        return _started_by_ps(pid)
    fields = _proc_fields(pid)
    if not fields or fields[0] == "X":
        return None
    # A killed program with many threads is called a zombie as soon as its first thread has ended; the others may still hold its ports.
    if fields[0] == "Z" and int(fields[17]) <= 1:
        return None
    return f"{_BOOT_ID.read_text(encoding='ascii').strip()}:{fields[19]}"


def _proc_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; none when there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The program's name, the second field, stands in brackets and may hold spaces and brackets itself.
    return status.rpartition(")")[2].split()


def _parents() -> dict[int, int]:
    """Each process's parent."""
    if not _BOOT_ID.exists():
        answer = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        return {int(pid): int(parent) for pid, parent in (line.split() for line in answer.stdout.splitlines())}
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: int(fields[1]) for pid in pids if (fields := _proc_fields(pid))}


def _started_by_ps(pid: int) -> str | None:
    """Where there is no /proc (macOS)."""
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, moment = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else moment.strip()


def _group(user: str) -> int:
    import pwd  # POSIX only, and needed only where a server refuses to run as root

    return pwd.getpwnam(user).pw_gid
