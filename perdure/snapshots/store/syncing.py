"""Making files and folders durable, once for many that wait.

Invariant: `FolderSyncs.sync(folder)` returns after a sync that began after the call did, of a folder whose own entry, and each one's above it
down from the root, has been synced since it was made. A sync that failed is never taken for one that a later call repeats: what the kernel
could not write it may have dropped, so the store then refuses to write until it is opened anew.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

from perdure.errors import Unavailable

__all__ = ["FolderSyncs", "sync_file"]

FOLDERS_REMEMBERED_MAX: Final = 20_000


def sync_file(descriptor: int) -> None:
    """To the disk itself, where the system tells a disk's cache from the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


class _Turns:
    """The syncs of one folder: those who come while one runs share the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counting = threading.Lock()
        self._syncing = threading.Lock()
        self._begun = 0
        self._done = 0
        self._failure: OSError | None = None

    def take(self) -> None:
        with self._counting:
            wanted = self._begun + 1
        with self._syncing:
            if self._failure is not None:
                raise self._failure
            if self._done >= wanted:
                return
            with self._counting:
                self._begun += 1
                mine = self._begun
            try:
                _sync_folder(self._folder)
            except FileNotFoundError:
                raise
            except OSError as error:
                self._failure = error
                raise
            self._done = mine


class FolderSyncs:
    """The folders of one root: made with mode 0700, and synced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, _Turns] = OrderedDict()
        self._failed = ""

    def make(self, folder: Path) -> None:
        """Make the folder and those above it where they are missing; durable. Raises FileExistsError where a file is in the way."""
        self._check()
        with self._lock:
            if folder in self._known:
                self._known.move_to_end(folder)
                return
        if folder == self._root:
            self._make_root()
        else:
            self.make(folder.parent)
            _make(folder)
            self.sync(folder.parent)  # also when it was there: whoever made it may not have got so far
        with self._lock:
            self._known.setdefault(folder, _Turns(folder))
            if len(self._known) > FOLDERS_REMEMBERED_MAX:
                self._known.popitem(last=False)

    def sync(self, folder: Path) -> None:
        """Return when the folder's entries of now are durable."""
        self._check()
        with self._lock:
            turns = self._known.get(folder)
        try:
            (turns or _Turns(folder)).take()
        except FileNotFoundError:
            raise
        except OSError as error:
            self._failed = f"{folder}: {error.strerror}"
            raise

    def forget(self) -> None:
        """Take no folder for durable any more."""
        with self._lock:
            self._known.clear()

    def _make_root(self) -> None:
        missing = [folder for folder in (self._root, *self._root.parents) if not folder.exists()]
        for folder in reversed(missing):
            _make(folder)
            self.sync(folder.parent)
        with suppress(PermissionError):  # an administrator's folder, which was there before us
            self.sync(self._root.parent)

    def _check(self) -> None:
        if self._failed:
            hint = "look after the disk, then open the store again"
            raise Unavailable(f"the store does not write any more, a folder could not be synced: {self._failed}", hint=hint)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)
