"""Files that are being written and have no name in the store yet.

Each is locked by its writer. One that nobody locks belongs to a writer that was killed, and is removed by whoever comes next.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from perdure.snapshots.store.syncing import sync_file

__all__ = ["PARTIAL", "Partials"]

PARTIAL: Final = ".partial"
"""The folder's name in the root of a store; no object's name begins with a dot."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Partials:
    """The folder of unfinished files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._swept = False
        self._lock = threading.Lock()

    @contextmanager
    def written(self, content: bytes) -> Iterator[Path]:
        """A new file with this content, synced, to be linked to its name; its own name is gone afterwards."""
        self._sweep_once()
        path, descriptor = self._open_locked()
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            sync_file(descriptor)
            yield path
        finally:
            # Without its name before without its lock: a sweep never meets it.
            with suppress(FileNotFoundError):
                path.unlink()
            os.close(descriptor)

    def _open_locked(self) -> tuple[Path, int]:
        while True:
            path = self._folder / secrets.token_hex(16)
            try:
                descriptor = os.open(path, _NEW, 0o600)
            except FileNotFoundError:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                continue
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
            os.close(descriptor)  # a sweep came between the making and the locking

    def _sweep_once(self) -> None:
        """Remove what killed writers left, once per process."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
            with suppress(FileNotFoundError):
                for path in list(self._folder.iterdir()):
                    _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return  # its writer lives
    finally:
        os.close(descriptor)
