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

from perdure import limits
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


def openers(root: Path) -> dict[str, partial[LocalStore]]:
    """The store, and two that must be found out."""
    return {
        "sound": partial(LocalStore, root),
        "no files": partial(careless, root, "no files"),
        "no folders": partial(careless, root, "no folders"),
    }


@pytest.mark.parametrize("kind", ["sound", "no files", "no folders"])
async def test_what_was_acknowledged_survives_a_power_cut(kind: str, tmp_path: Path) -> None:
    for way in ways():
        faults = await after_cuts(kind) if way == "cut" else recorded_faults(tmp_path / "store", kind)
        assert bool(faults) == (kind != "sound"), (way, faults[:3])


async def after_cuts(kind: str) -> list[str]:
    """The faults after a few cuts. A cut may come at a moment at which the file system has just written everything for reasons of its own, so a
    store that does not sync gets more chances to be found out than the sound one gets to fail."""
    faults: list[str] = []
    for _ in range(2 if kind == "sound" else 12):
        with a_disk() as disk:
            faults += await after_a_cut(disk, openers(disk.folder / "store")[kind])
        if faults:
            break
    return faults


async def after_a_cut(disk: Disk, opener: partial[LocalStore]) -> list[str]:
    """What is not as it was promised, after the power was cut in the middle of many puts."""
    acknowledged = await put_until_killed(opener, acknowledged_min=ACKNOWLEDGED, before_kill=disk.cut)
    disk.unmount()
    disk.mount()
    store = LocalStore(disk.folder / "store")
    found = [facts.name async for facts in store.list("")]
    faults = [f"{name} is gone" for name in acknowledged if name not in found]
    for name in found:
        content = await store.get(name, bytes_max=limits.MIB)
        if name != f"put/{hashlib.sha256(content).hexdigest()}":
            faults.append(f"{name} is not whole: {len(content)} bytes")
    assert await store.put("after", b"the store goes on")
    left = os.listdir(disk.folder / "store" / ".partial") if not faults else []
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
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=Path(__file__).parents[2])
    acknowledged = [line.removeprefix("acknowledged ") for line in done.stdout.splitlines()]
    assert len(acknowledged) == OBJECTS
    return check_record(root, record.read_text(), acknowledged)


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
        store = openers(Path(root))[kind]()
        for number in range(OBJECTS):
            name = f"folder-{number % 2}/below/{number}"
            await store.put(name, os.urandom(100_000))
            os.write(1, f"acknowledged {name}\n".encode())
        await store.close()

    asyncio.run(run())


if __name__ == "__main__":
    write_some(sys.argv[1], sys.argv[2])
