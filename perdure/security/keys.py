"""Root keys: where they come from, and how they wrap the tenants' keys.

A provider never gives a root key away; it wraps and unwraps. The bytes of a wrapped key are specified in docs/format/sealed-payload.md.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from perdure.errors import ConfigurationError, KeyUnavailable, SealBroken
from perdure.security.framing import join_fields
from perdure.security.keyfile import KEY_BYTES, KeyFile, RootKeys, root_key_id

__all__ = ["EnvironmentKeyProvider", "FileKeyProvider", "KeyProvider", "key_id_of", "open_provider"]

ENVIRONMENT_VARIABLE: Final = "PERDURE_ROOT_KEY"

_VERSION = 0x01
_VAULT_VERSION = 0x02
_SALT_BYTES = 32
_NONCE_BYTES = 12
_DOMAIN = b"perdure root wrap"


class KeyProvider(Protocol):
    """Holds root keys, in a file, in the environment or in a service. All methods may raise `KeyUnavailable`, `Unavailable`."""

    @property
    def key_id(self) -> str:
        """The id of the root key that wraps from now on."""
        ...

    async def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt under the current root key, bound to the context; the result names the key."""
        ...

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Decrypt with whichever root key was used. Raises SealBroken, KeyUnavailable."""
        ...


def open_provider(url: str) -> KeyProvider:
    """The provider that a URL names: `file:///…/root.key`, `env:`, `env:NAME` or `vault://HOST:PORT/KEY`. Raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.scheme == "vault":
        from perdure.security.vault_transit import open_vault

        return open_vault(parts)
    if parts.scheme == "env":
        return EnvironmentKeyProvider(parts.path or ENVIRONMENT_VARIABLE)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/") and not parts.path.endswith("/"):
        return FileKeyProvider(Path(unquote(parts.path)))
    raise ConfigurationError(
        f"the key provider {parts.scheme or url!r} is not known, or its URL names no file",
        hint="write file:///absolute/path/root.key, env:, env:NAME or vault://HOST:PORT/KEY",
    )


class FileKeyProvider:
    """Root keys in a local file (JSON, mode 0600), made at first use.

    path: the file. Raises ConfigurationError when others can read or replace it, or when it is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = KeyFile(Path(path))
        self._keys: RootKeys | None = None
        self._missed = ""
        """The id of a root key that was needed when there was no file."""

    @property
    def key_id(self) -> str:
        """The id of the current root key. Raises KeyUnavailable where the file is gone."""
        return self._loaded().current

    def missing(self) -> bool:
        """Whether there is no key yet; the next `wrap` would make one."""
        return self._keys is None and not self._file.path.exists()

    async def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """See KeyProvider. The file is read anew, which is rarely: another process may have added a key."""
        await asyncio.to_thread(self._loaded)
        keys = self._keys = await asyncio.to_thread(self._file.load)
        return _wrap(keys.current, keys.keys[keys.current], plaintext, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See KeyProvider. An id that is not known makes the file be read again: another process may have added the key."""
        id = key_id_of(wrapped)
        if self._keys is None or id not in self._keys.keys:
            await asyncio.to_thread(self._look_again)
        if self._keys is None or id not in self._keys.keys:
            self._missed = id
            raise self._unavailable(id)
        return _unwrap(id, self._keys.keys[id], wrapped, context)

    async def add_key(self) -> str:
        """Add a new root key that wraps from now on, keep the old ones for unwrapping; its id."""
        await asyncio.to_thread(self._loaded)
        self._keys = await asyncio.to_thread(self._file.add, os.urandom(KEY_BYTES))
        return self._keys.current

    def _look_again(self) -> None:
        """Read the file, where there is one. None is made: what is wrapped already needs the key that it was wrapped with."""
        if self._file.path.exists():
            self._keys = self._file.load()

    def _loaded(self) -> RootKeys:
        if self._keys is None and self._missed and not self._file.path.exists():
            raise self._unavailable(self._missed)  # a new one beside it would hide that it is gone
        if self._keys is None:
            self._keys = self._file.load_or_create(os.urandom(KEY_BYTES))
        return self._keys

    def _unavailable(self, id: str) -> KeyUnavailable:
        where = f"is not in {self._file.path}" if self._keys is not None else f"is not there: there is no file {self._file.path}"
        hint = "name the right key file by --keys or PERDURE_KEYS, or restore it from its backup"
        return KeyUnavailable(f"the root key {id} {where}", hint=hint, key_id=id)


class EnvironmentKeyProvider:
    """Root keys in an environment variable: base64 of 32 bytes; several are separated by commas, the first one wraps.

    name: the variable. environment: where to look, the process's own by default. Raises ConfigurationError.
    """

    def __init__(self, name: str = ENVIRONMENT_VARIABLE, environment: Mapping[str, str] | None = None) -> None:
        text = (os.environ if environment is None else environment).get(name, "")
        if not text.strip():
            raise ConfigurationError(f"the environment variable {name} holds no root key", hint=_make_hint(name))
        self._name = name
        self._keys = {root_key_id(key): key for key in (self._decode(part) for part in text.split(","))}
        self._current = next(iter(self._keys))

    @property
    def key_id(self) -> str:
        """The id of the current root key."""
        return self._current

    async def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """See KeyProvider."""
        return _wrap(self._current, self._keys[self._current], plaintext, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See KeyProvider."""
        id = key_id_of(wrapped)
        if id not in self._keys:
            raise KeyUnavailable(
                f"the root key {id} is not in {self._name}", hint=f"append the old key to {self._name} after a comma", key_id=id
            )
        return _unwrap(id, self._keys[id], wrapped, context)

    def _decode(self, text: str) -> bytes:
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            # Never show the value: it may be a key with a typing error.
            raise ConfigurationError(f"{self._name} is not base64 of {KEY_BYTES} bytes", hint=_make_hint(self._name)) from None
        return key


def _make_hint(name: str) -> str:
    return f"set it with: export {name}=$(head -c {KEY_BYTES} /dev/urandom | base64)"


def _derive(key: bytes, salt: bytes, associated: bytes) -> tuple[AESGCM, bytes]:
    # A key and a nonce of their own for every wrap: no bound on how often a root key may be used.
    derived = HKDF(algorithm=SHA256(), length=KEY_BYTES + _NONCE_BYTES, salt=salt, info=associated).derive(key)
    return AESGCM(derived[:KEY_BYTES]), derived[KEY_BYTES:]


def _wrap(id: str, key: bytes, plaintext: bytes, context: bytes) -> bytes:
    name = id.encode()
    header = bytes((_VERSION, len(name))) + name
    salt = os.urandom(_SALT_BYTES)
    associated = join_fields(_DOMAIN, header, context)
    aead, nonce = _derive(key, salt, associated)
    return header + salt + aead.encrypt(nonce, plaintext, associated)


def key_id_of(wrapped: bytes) -> str:
    """The id of the root key that a wrapped key names; authenticated only by unwrapping it. Raises SealBroken."""
    if len(wrapped) < 2 or wrapped[0] not in {_VERSION, _VAULT_VERSION} or len(wrapped) < 2 + wrapped[1]:
        raise SealBroken("a key wrapped by the root key is cut off or of an unknown format")
    return wrapped[2 : 2 + wrapped[1]].decode("ascii", "replace")


def _unwrap(id: str, key: bytes, wrapped: bytes, context: bytes) -> bytes:
    start = 2 + wrapped[1]
    associated = join_fields(_DOMAIN, wrapped[:start], context)
    aead, nonce = _derive(key, wrapped[start : start + _SALT_BYTES], associated)
    try:
        return aead.decrypt(nonce, wrapped[start + _SALT_BYTES :], associated)
    except (InvalidTag, ValueError) as error:
        raise SealBroken("a key wrapped by the root key failed its authentication", key_id=id) from error
