"""The file that root keys are kept in: made once, whole, durable, and readable by its owner only."""

from __future__ import annotations

import base64
import fcntl
import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from perdure import limits
from perdure.errors import ConfigurationError

__all__ = ["KEY_BYTES", "KeyFile", "RootKeys", "root_key_id"]

KEY_BYTES: Final = 32
_FORMAT = "perdure-root-keys-1"


def root_key_id(key: bytes) -> str:
    """The id of a root key, 16 hexadecimal digits: derived from the key, so a damaged key is noticed before it is used."""
    return hashlib.sha256(b"perdure root key id" + key).hexdigest()[:16]


class RootKeys(msgspec.Struct, frozen=True):
    """The keys of a file. current: the id of the one that wraps. keys: id → 32 bytes."""

    current: str
    keys: dict[str, bytes]


class _StoredKey(msgspec.Struct, frozen=True):
    id: str
    key: str


class _StoredFile(msgspec.Struct, frozen=True):
    format: str
    current: str
    keys: list[_StoredKey]


class KeyFile:
    """One key file. All methods block on the disk; all raise ConfigurationError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load_or_create(self, new_key: bytes) -> RootKeys:
        """The file's keys; a file that is missing is made with `new_key`. Of several makers one wins, and all get its key."""
        if not self.path.exists():
            with self._explained("made"):
                _make_folder(self.path.parent)
                with _locked_folder(self.path.parent):
                    self._remove_leftovers()
                    self._create(_encode(_with_key({}, new_key)))
        return self.load()

    def load(self) -> RootKeys:
        """The file's keys, after its owner, its mode and its content are checked."""
        with self._explained("read"):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                # The open file is checked, not its name: the name could be given to another file in between.
                self._check_access(os.fstat(descriptor), self.path.parent.stat())
                content = file.read(limits.KEY_FILE_BYTES_MAX + 1)
        return self._decode(content)

    def add(self, new_key: bytes) -> RootKeys:
        """Add a key that becomes the current one; two processes that add at the same time both succeed."""
        with self._explained("changed"), _locked_folder(self.path.parent):
            self._remove_leftovers()
            keys = self.load()
            if len(keys.keys) >= limits.ROOT_KEYS_MAX:
                raise ConfigurationError(f"{self.path} holds {len(keys.keys)} root keys, the limit is {limits.ROOT_KEYS_MAX}")
            grown = _with_key(keys.keys, new_key)
            temporary = self._write_temporary(_encode(grown))
            os.replace(temporary, self.path)
            _sync_folder(self.path.parent)
        return grown

    def _create(self, content: bytes) -> None:
        temporary = self._write_temporary(content)
        try:
            # link() never replaces: whoever comes second finds the first one's file, whole and already durable.
            os.link(temporary, self.path)
        except FileExistsError:
            return
        finally:
            os.unlink(temporary)
            _sync_folder(self.path.parent)

    def _remove_leftovers(self) -> None:
        """What a killed process was about to make the key file holds keys as well. Under the lock nobody is writing one."""
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*"):
            left.unlink()

    def _write_temporary(self, content: bytes) -> str:
        descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        except OSError:
            os.unlink(name)
            raise
        return name

    def _check_access(self, file: os.stat_result, folder: os.stat_result) -> None:
        if not stat.S_ISREG(file.st_mode):
            raise ConfigurationError(f"{self.path} is no regular file", hint="name a key file that does not exist yet")
        if file.st_mode & 0o077:
            mode = stat.S_IMODE(file.st_mode)
            raise ConfigurationError(f"{self.path} can be used by others (mode {mode:04o})", hint=f"run: chmod 600 {self.path}")
        if file.st_uid not in {os.geteuid(), 0}:
            raise ConfigurationError(f"{self.path} belongs to another user", hint="run as its owner, or use a key file of your own")
        if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
            raise ConfigurationError(f"others can replace {self.path}", hint=f"run: chmod go-w {self.path.parent}")

    def _decode(self, content: bytes) -> RootKeys:
        try:
            stored = msgspec.json.decode(content, type=_StoredFile)
            keys = {entry.id: base64.b64decode(entry.key, validate=True) for entry in stored.keys}
        except ValueError as error:
            # The decoder's words may quote the content, and that is a key.
            raise self._damaged(type(error).__name__) from None
        if stored.format != _FORMAT:
            raise self._damaged("its format is another one")
        if stored.current not in keys or len(keys) != len(stored.keys):
            raise self._damaged("its list of keys does not hold together")
        if any(len(key) != KEY_BYTES or root_key_id(key) != id for id, key in keys.items()):
            raise self._damaged("a key does not fit its id")
        return RootKeys(stored.current, keys)

    def _damaged(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"the key file {self.path} is damaged: {reason}",
            hint="restore it from its backup; without it nothing that was sealed can be read",
        )

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "name a path in a folder of your own, on a file system with hard links"
            raise ConfigurationError(f"the key file {self.path} cannot be {action}: {error.strerror}", hint=hint) from error


def _with_key(keys: dict[str, bytes], new_key: bytes) -> RootKeys:
    id = root_key_id(new_key)
    return RootKeys(id, {**keys, id: new_key})


def _encode(keys: RootKeys) -> bytes:
    entries = [_StoredKey(id, base64.b64encode(key).decode()) for id, key in keys.keys.items()]
    return msgspec.json.format(msgspec.json.encode(_StoredFile(_FORMAT, keys.current, entries)), indent=2) + b"\n"


def _make_folder(folder: Path) -> None:
    if folder.exists():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # gives the lock back
