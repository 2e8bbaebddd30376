"""What the local store has acknowledged is there after the power was cut.

Where the machine lets us, the power of a disk is cut for real (`power`). Where it does not, the system calls of a writer are recorded, and what
must be synced before what is checked in the record. The tests of one way also show that it notices a store that does not sync.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest

from perdure.snapshots.store.local import LocalStore
from perdure.testing.store_processes import put_until_killed
from tests.faults.power import Disk, a_disk, can_cut_power

ACKNOWLEDGED = 60
OBJECTS = 6


@cache
def ways() -> list[str]:
    """Those that this machine allows."""
    found = [name for name, there in (("cut", can_cut_power()), ("record", shutil.which("strace") is not None)) if there]
    assert found, "power cannot be cut here: be root with a loop device, or install strace"
    return found


def careless(root: Path, syncs: str) -> LocalStore:
    """A store that does not sync files, or folders."""
    from perdure.snapshots.store import partial as partial_files
    from perdure.snapshots.store import syncing

    if syncs == "no files":
        partial_files.sync_file = lambda _: None
    else:
        syncing._sync_folder = lambda _: None
    return LocalStore(root)


def open_store(root: Path, kind: str) -> LocalStore:
    """The store, or one of two that must be found out."""
    return LocalStore(root) if kind == "sound" else careless(root, kind)


@pytest.mark.parametrize("kind", ["sound", "no files", "no folders"])
async def test_what_was_acknowledged_survives_a_power_cut(kind: str, tmp_path: Path) -> None:
    for way in ways():
        faults = faults_after_a_cut(kind) if way == "cut" else recorded_faults(tmp_path / "store", kind)
        if (way, kind) == ("cut", "sound"):
            faults += await faults_after_cuts_among_many()
        assert bool(faults) == (kind != "sound"), (way, faults[:3])


def faults_after_a_cut(kind: str) -> list[str]:
    """What is not as it was promised, after the power was cut when a writer had put its last object and nobody wrote anything more: whatever
    it did not sync had no other reason to reach the disk."""
    with a_disk() as disk:
        root = disk.folder / "store"
        acknowledged = acknowledged_by([sys.executable, "-m", __name__, str(root), kind])
        disk.cut()
        disk.unmount()
        disk.mount()
        return [fault for name in acknowledged for fault in look_at(root / name)]


def look_at(path: Path) -> list[str]:
    """Whether an object named by its digest is there, and whole."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [f"{path.name} is gone"]
    whole = path.name == hashlib.sha256(content).hexdigest()
    return [] if whole else [f"{path.name} is not whole: {len(content)} bytes"]


async def faults_after_cuts_among_many() -> list[str]:
    """More than one: each comes at another moment."""
    faults: list[str] = []
    for _ in range(2):
        with a_disk() as disk:
            faults += await faults_after_a_cut_among_many(disk)
    return faults


async def faults_after_a_cut_among_many(disk: Disk) -> list[str]:
    """What is not as it was promised, after the power was cut while many were put at once."""
    root = disk.folder / "store"
    acknowledged = await put_until_killed(partial(LocalStore, root), acknowledged_min=ACKNOWLEDGED, before_kill=disk.cut)
    disk.unmount()
    disk.mount()
    store = LocalStore(root)
    found = [facts.name async for facts in store.list("")]
    faults = [f"{name} is gone" for name in acknowledged if name not in found]
    faults += [fault for name in found for fault in look_at(root / name)]
    assert await store.put("after", b"the store goes on")
    left = os.listdir(root / ".partial")
    await store.close()
    return faults + [f"{name} was left behind" for name in left]


# --- where power cannot be cut: the record of a writer's system calls ---

CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?:<(?P<path>[^>]*)>)?")
TRACED = "openat,fsync,fdatasync,link,linkat,mkdir,mkdirat,write,rename"


def recorded_faults(root: Path, kind: str) -> list[str]:
    """Run a writer that puts a few objects one after the other, and look whether each was acknowledged too early."""
    record = root.parent / f"calls-{kind.replace(' ', '-')}"
    command = [
        "strace",
        "-f",
        "-y",
        "-s",
        "200",
        "-o",
        str(record),
        "-e",
        f"trace={TRACED}",
        sys.executable,
        "-m",
        __name__,
        str(root),
        kind,
    ]
    acknowledged = acknowledged_by(command)
    return check_record(root, record.read_text(), acknowledged)


def acknowledged_by(command: list[str]) -> list[str]:
    """Run a writer to its end: the names that it said to be durable."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=Path(__file__).parents[2])
    acknowledged = [line.removeprefix("acknowledged ") for line in done.stdout.splitlines()]
    assert len(acknowledged) == OBJECTS
    return acknowledged


def check_record(root: Path, record: str, acknowledged: list[str]) -> list[str]:
    """What happened too early. An object may be named when its file was synced after the last write, and acknowledged when its folder, and
    each above it that was made, was synced after that."""
    calls = [found for line in record.splitlines() if (found := CALL.match(line)) is not None and int(found["result"]) >= 0]
    faults: list[str] = []
    unsynced_files: set[str] = set()
    unsynced_folders: dict[str, set[str]] = {}
    for call in calls:
        paths = re.findall(r'<(/[^>]*)>|"([^"]*)"', call["arguments"])
        names = [one or other for one, other in paths]
        if call["name"] == "write" and "acknowledged " in call["arguments"]:
            name = call["arguments"].split("acknowledged ")[1].split("\\n")[0]
            faults += [f"{name} was acknowledged before {folder} was synced" for folder, new in unsynced_folders.items() if new]
        elif call["name"] == "write" and names and "/.partial/" in names[0]:
            unsynced_files.add(names[0])
        elif call["name"] in {"fsync", "fdatasync"} and names:
            unsynced_files.discard(names[0])
            unsynced_folders.pop(names[0], None)
        elif call["name"].startswith("link"):
            source, target = (name for name in names if name.startswith(str(root)))
            if source in unsynced_files:
                faults.append(f"{target} was named before it was synced")
            unsynced_folders.setdefault(os.path.dirname(target), set()).add(target)
        elif call["name"].startswith("mkdir") and names[-1].startswith(str(root)) and ".partial" not in names[-1]:
            unsynced_folders.setdefault(os.path.dirname(names[-1]), set()).add(names[-1])
    assert sum("acknowledged " in call["arguments"] for call in calls) == len(acknowledged), "the record is not whole"
    return faults


def write_some(root: str, kind: str) -> None:
    """The writer: one object after the other, each said to be durable when it is."""

    async def run() -> None:
        store = open_store(Path(root), kind)
        for number in range(OBJECTS):
            content = os.urandom(100_000)
            name = f"folder-{number % 2}/below/{hashlib.sha256(content).hexdigest()}"
            await store.put(name, content)
            os.write(1, f"acknowledged {name}\n".encode())
        await store.close()

    asyncio.run(run())


if __name__ == "__main__":
    write_some(sys.argv[1], sys.argv[2])
