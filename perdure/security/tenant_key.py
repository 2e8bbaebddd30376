"""A tenant's key at work: it wraps the agents' data keys, names content, and seals what belongs to the tenant as a whole."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure import limits
from perdure.errors import KeyUnavailable, SealBroken
from perdure.security.cipher import KEY_BYTES, Cipher, Dictionaries, key_version_of
from perdure.security.dictionary_set import BUILTIN
from perdure.security.framing import join_fields

__all__ = ["KEY_BYTES", "WRAPPED_BYTES", "TenantKey"]

_VERSION = 0x01
_HEADER_BYTES = 2
_SALT_BYTES = 24
_TAG_BYTES = 16
# The salt gives every wrap a key of its own, which is therefore used once: its nonce may be constant.
_NONCE = bytes(12)
WRAPPED_BYTES: Final = _HEADER_BYTES + _SALT_BYTES + KEY_BYTES + _TAG_BYTES
"""Size of a wrapped data key; larger where the agent inherited others."""


class _Version:
    """The keys for one purpose each that are derived from one version of the tenant's key."""

    __slots__ = ("agents", "chunks", "marks", "names", "seals", "wraps")

    def __init__(self, key: bytes) -> None:
        self.wraps, self.names, self.seals = (hmac.digest(key, b"perdure tenant " + use, "sha256") for use in (b"wrap", b"name", b"seal"))
        self.chunks, self.marks = (hmac.digest(key, b"perdure tenant " + use, "sha256") for use in (b"chunk", b"mark"))
        self.agents = hmac.digest(key, b"perdure tenant data", "sha256")


class TenantKey:
    """All versions of one tenant's key. keys: version (1 … 255) → 32 bytes; the highest version is used for whatever is new.

    A process has one of these per tenant: what it learns, every cipher of the tenant's agents uses at once.
    """

    def __init__(self, tenant: str, keys: Mapping[int, bytes]) -> None:
        self.tenant = tenant
        self._versions: dict[int, _Version] = {}
        self.version = 0
        self.learn(keys)

    def learn(self, keys: Mapping[int, bytes]) -> None:
        """Take in versions that another process has made; those that are known stay."""
        # A new dict, and the number after it: threads that seal meanwhile never meet a version that is not there.
        self._versions = {version: _Version(key) for version, key in keys.items() if version not in self._versions} | self._versions
        self.version = max(self._versions)

    @property
    def versions(self) -> list[int]:
        """The versions that are known, oldest first."""
        return sorted(self._versions)

    # --- data keys of agents ---
    def new_data_key(self, agent: str) -> tuple[bytes, bytes]:
        """A new data key for an agent: (wrapped, 74 bytes, to be stored with the agent; the key, 32 bytes, for its Cipher)."""
        key = os.urandom(KEY_BYTES)
        return self.wrap_data_key(agent, key), key

    def wrap_data_key(self, agent: str, key: bytes) -> bytes:
        """A data key, or an agent's whole key material (`perdure.security.heirs`), wrapped by the newest version."""
        version, salt = self.version, os.urandom(_SALT_BYTES)
        header = bytes((_VERSION, version))
        wrapping = AESGCM(hmac.digest(self._versions[version].wraps, salt, "sha256"))
        return header + salt + wrapping.encrypt(_NONCE, key, self._associated(agent, header))

    def agent_key(self, version: int, data_key: bytes) -> bytes:
        """The key, 32 bytes, that seals an agent's values under a version of the tenant's key. Raises KeyUnavailable.

        Both keys are needed for it: whoever destroys the data key has destroyed it, and whoever knew an old version does not know the new one.
        """
        return data_key if version == 1 else hmac.digest(self._find(version).agents, data_key, "sha256")

    def unwrap_data_key(self, agent: str, wrapped: bytes) -> bytes:
        """The data key of an agent. Raises KeyUnavailable (destroyed, or the version has to be loaded first), SealBroken."""
        return self.unwrap_material(agent, wrapped)[:KEY_BYTES]

    def unwrap_material(self, agent: str, wrapped: bytes) -> bytes:
        """The data key of an agent and whatever it inherited, see `perdure.security.heirs`. Raises as `unwrap_data_key`."""
        if not wrapped:
            raise KeyUnavailable("the agent's key was destroyed", tenant=self.tenant, agent=agent, reason="destroyed")
        if len(wrapped) < WRAPPED_BYTES or wrapped[0] != _VERSION:
            raise SealBroken("the agent's wrapped key is cut off or of an unknown format", tenant=self.tenant, agent=agent)
        header, salt = wrapped[:_HEADER_BYTES], wrapped[_HEADER_BYTES : _HEADER_BYTES + _SALT_BYTES]
        key = hmac.digest(self._find(wrapped[1]).wraps, salt, "sha256")
        try:
            return AESGCM(key).decrypt(_NONCE, wrapped[_HEADER_BYTES + _SALT_BYTES :], self._associated(agent, header))
        except InvalidTag as error:
            hint = "the stored key was changed, or it belongs to another agent"
            raise SealBroken("the agent's wrapped key failed its authentication", hint=hint, tenant=self.tenant, agent=agent) from error

    @staticmethod
    def wrapped_by(wrapped: bytes) -> int:
        """The version that a wrapped data key names; 0 for what is destroyed or damaged."""
        return wrapped[1] if len(wrapped) >= WRAPPED_BYTES and wrapped[0] == _VERSION else 0

    def holds(self, wrapped: bytes) -> bool:
        """Whether the key version that a wrapped or sealed value names is known; True also for what is too short to name one."""
        return len(wrapped) < _HEADER_BYTES or wrapped[1] in self._versions

    # --- what belongs to the tenant as a whole ---
    def blob_name(self, plaintext: bytes) -> bytes:
        """The content-derived name of a blob, 32 bytes: equal content has equal names within one tenant and key version only."""
        # HMAC over the digest, so that a large blob is hashed at the speed of plain SHA-256.
        return hmac.digest(self._versions[self.version].names, hashlib.sha256(plaintext).digest(), "sha256")

    def seal_blob(self, plaintext: bytes) -> tuple[bytes, bytes]:
        """(name, sealed bytes) of a blob. Raises LimitExceeded."""
        name = self.blob_name(plaintext)
        return name, self.seal(join_fields(b"blob", name), plaintext)

    def open_blob(self, name: bytes, sealed: bytes) -> bytes:
        """The plaintext of the blob of this name. Raises SealBroken, KeyUnavailable."""
        return self.open(join_fields(b"blob", name), sealed)

    def chunk_key(self, version: int, content: bytes) -> bytes:
        """The key of a snapshot's chunk, 32 bytes. content: what tells the chunk's content and how it is compressed. Raises KeyUnavailable."""
        return hmac.digest(self._find(version).chunks, content, "sha256")

    def snapshot_secrets(self) -> tuple[dict[int, bytes], bytes]:
        """What a checker that derives keys and marks by itself needs: the chunk secret of each version, and the secret of marks."""
        return {version: keys.chunks for version, keys in self._versions.items()}, self._versions[min(self._versions)].marks

    def mark(self, what: bytes) -> bytes:
        """What stands for a name of the tenant in the names of stored objects, 32 bytes; the same under every version of the key."""
        return hmac.digest(self._versions[min(self._versions)].marks, what, "sha256")

    def seal(self, context: bytes, plaintext: bytes, dictionaries: Dictionaries = BUILTIN) -> bytes:
        """Seal what no single agent owns, e.g. a dictionary; the context names it. Raises LimitExceeded."""
        return self._cipher(self.version, context, dictionaries).seal(context, plaintext)

    def open(self, context: bytes, sealed: bytes, dictionaries: Dictionaries = BUILTIN) -> bytes:
        """Open what `seal` closed, under any version of the key. Raises SealBroken, KeyUnavailable, DictionaryNotFound."""
        return self._cipher(key_version_of(sealed), context, dictionaries).open(context, sealed)

    def _cipher(self, version: int, context: bytes, dictionaries: Dictionaries) -> Cipher:
        # A key per context: what is sealed once under its name never meets the bound on random nonces.
        key = hmac.digest(self._find(version).seals, context, "sha256")
        return Cipher(self.tenant, "", key, dictionaries, key_version=version, plaintext_bytes_max=limits.BLOB_BYTES_MAX)

    def _find(self, version: int) -> _Version:
        found = self._versions.get(version)
        if found is None:
            raise KeyUnavailable(
                f"version {version} of the tenant's key is not loaded",
                hint="load the tenant's key again: another process may have rotated it",
                tenant=self.tenant,
                reason="unknown_version",
                key_version=version,
            )
        return found

    def _associated(self, agent: str, header: bytes) -> bytes:
        return join_fields(b"perdure data key", self.tenant.encode(), agent.encode(), header)
