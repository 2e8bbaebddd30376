"""A disk whose power can be cut: an ext4 file system in a file, and the ioctl with which the kernel stops it without writing anything more.

What the file system had not handed to the block device at that moment is lost, as with a real cut; what a disk's own cache would lose in
addition is not. Needs root, a loop device and mkfs.ext4.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Disk", "a_disk", "can_cut_power"]

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
GOING_FLAGS_NOLOGFLUSH = 2
COMMIT_S = 300
IMAGE_BYTES = 96 * 1024 * 1024


class Disk:
    """One disk, mounted at `folder`."""

    def __init__(self, root: Path) -> None:
        self._image = root / "disk.img"
        self.folder = root / "disk"
        self._mounted = False
        self.folder.mkdir()
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        run("mkfs.ext4", "-q", "-F", str(self._image))

    def mount(self) -> None:
        """Also after a cut: the journal is replayed then. It is not written for its age while a test lasts."""
        run("mount", "-o", f"loop,commit={COMMIT_S}", str(self._image), str(self.folder))
        self._mounted = True

    def cut(self) -> None:
        """From now on nothing reaches the disk."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        if self._mounted:
            run("umount", str(self.folder))
            self._mounted = False


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")


@contextmanager
def a_disk() -> Iterator[Disk]:
    """A new disk, mounted; taken away at the end."""
    root = Path(tempfile.mkdtemp(prefix="perdure-disk-", dir="/var/tmp"))
    try:
        disk = Disk(root)
        try:
            disk.mount()
            yield disk
        finally:
            disk.unmount()
    finally:
        shutil.rmtree(root)


def can_cut_power() -> bool:
    """Whether this machine lets us: root, a loop device, ext4."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin") is None:
        return False
    try:
        with a_disk() as disk:
            disk.cut()
    except OSError:
        return False
    return True
