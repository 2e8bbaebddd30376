"""Objects as files of one folder: written whole, synced, then linked to their names. Synchronous; thread-safe.

A new object is written to a file without a name of its own (`.partial/…`), synced, and linked to its name: `link` never replaces, so of several
writers one wins, and a name never shows half a content. Then the folder is synced, and each folder above that nobody has synced yet. An
object that is found there already is acknowledged after its folder was synced, too: whoever wrote it may not have got so far.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perdure import limits
from perdure.engine import steps
from perdure.errors import ConfigurationError, InvalidInput, ObjectNotFound, PerdureError, Unavailable
from perdure.snapshots.store.contract import ObjectFacts, check_folder, check_name, check_size, is_name
from perdure.snapshots.store.partial import PARTIAL, Partials
from perdure.snapshots.store.syncing import FolderSyncs
from perdure.snapshots.store.walk import walk

__all__ = ["ObjectFolder"]

_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ABSENT: Final = (FileNotFoundError, NotADirectoryError)
_SETTINGS: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class ObjectFolder:
    """The objects below `root`, a folder that is made with the first object."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._syncs = FolderSyncs(self.root)
        self._partials = Partials(self.root / PARTIAL)

    def put(self, name: str, content: bytes) -> bool:
        """See SnapshotStore.put."""
        target = self._path(name)
        check_size(name, len(content), limits.STORE_OBJECT_BYTES_MAX)
        with _explained("put", name):
            for last_try in (False, True):
                try:
                    self._syncs.make(target.parent)
                    created = not self._is_there(target) and self._create(target, content)
                    self._syncs.sync(target.parent)
                except FileNotFoundError:
                    # Somebody has removed folders that were known to be there: they are made once more.
                    self._syncs.forget()
                    if last_try:
                        raise
                else:
                    return created
        raise AssertionError("the second try returns or raises")

    def get(self, name: str, bytes_max: int) -> bytes:
        """See SnapshotStore.get."""
        path = self._path(name)
        with _explained("get", name):
            try:
                descriptor = os.open(path, _OPEN)
            except OSError as error:
                if isinstance(error, _ABSENT) or error.errno == errno.ELOOP:
                    raise ObjectNotFound(f"there is no object {name}", object=name) from error
                raise
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise ObjectNotFound(f"there is no object {name}, something else has that name", object=name)
                check_size(name, found.st_size, bytes_max)
                with open(descriptor, "rb", buffering=0, closefd=False) as file:
                    return file.readall()
            finally:
                os.close(descriptor)

    def facts(self, name: str) -> ObjectFacts | None:
        """See SnapshotStore.facts."""
        with _explained("look up", name):
            try:
                found = self._path(name).lstat()
            except _ABSENT:
                return None
            return _facts(name, found) if stat.S_ISREG(found.st_mode) else None

    def page(self, prefix: str, after: str, count: int) -> list[ObjectFacts]:
        """At most `count` objects below a folder, names behind `after`, in order."""
        found: list[ObjectFacts] = []
        with _explained("list", check_folder(prefix) or "everything"):
            for name in walk(self.root, prefix, after):
                facts = self.facts(name) if is_name(name) else None
                if facts is not None:
                    found.append(facts)
                if len(found) >= count:
                    break
        return found

    def delete(self, name: str) -> None:
        """See SnapshotStore.delete. Folders stay: others may be about to use them."""
        path = self._path(name)
        with _explained("delete", name):
            try:
                path.unlink()
            except _ABSENT:
                return
            except IsADirectoryError as error:
                raise InvalidInput(f"{name} is no object, a folder has that name", object=name) from error

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _is_there(self, target: Path) -> bool:
        try:
            found = target.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInput(f"{target.relative_to(self.root)} cannot be an object: a folder has that name")
        return True

    def _create(self, target: Path, content: bytes) -> bool:
        with self._partials.written(content) as temporary:
            steps.reach("store.written")
            try:
                os.link(temporary, target, follow_symlinks=False)
            except FileExistsError:
                return not self._is_there(target)
        steps.reach("store.linked")
        return True


def _facts(name: str, found: os.stat_result) -> ObjectFacts:
    return ObjectFacts(name, found.st_size, found.st_mtime_ns // 1000)


@contextmanager
def _explained(action: str, name: str) -> Iterator[None]:
    """Whatever the disk says becomes a typed error."""
    try:
        yield
    except PerdureError:
        raise
    except FileExistsError as error:
        raise InvalidInput(f"{name} cannot be put: another object is in the place of its folder", object=name) from error
    except OSError as error:
        message = f"the store cannot {action} {name}: {error.strerror or error}"
        if error.errno in _SETTINGS:
            raise ConfigurationError(message, hint=f"who runs this must be able to write to {error.filename}") from error
        raise Unavailable(message, hint="free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "", object=name) from error
