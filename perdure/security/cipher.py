"""Sealing: compress, then encrypt and authenticate, bound to a tenant, an agent and a context.

The bytes are specified in docs/format/sealed-payload.md. Everything here is synchronous, thread-safe and free of input and output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from perdure import limits
from perdure.errors import DictionaryNotFound, LimitExceeded, SealBroken
from perdure.security.compression import NO_DICTIONARY, Dictionary, FrameBroken
from perdure.security.framing import join_fields, read_varint, write_varint

__all__ = ["KEY_BYTES", "OVERHEAD_BYTES_MAX", "Cipher", "Dictionaries", "KeyVersions", "key_version_of"]

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD_BYTES_MAX: Final = 2 + 3 + NONCE_BYTES + TAG_BYTES
"""What a seal adds at most to its compressed content."""

_VERSION = 0x01
_COMPRESSED = 0x80  # flag beside the version: the content is a zstd frame
_DOMAIN = b"perdure seal"
_SIZE_MIN = 3 + NONCE_BYTES + TAG_BYTES


class Dictionaries(Protocol):
    """The dictionaries that a cipher may use."""

    @property
    def newest(self) -> Dictionary:
        """The one for new seals."""
        ...

    def find(self, id: int) -> Dictionary | None:
        """The one with this id, or None where it is not loaded."""
        ...


class KeyVersions(Protocol):
    """The versions of a tenant's key, for the ciphers of its agents."""

    @property
    def version(self) -> int:
        """The one for new seals."""
        ...

    def agent_key(self, version: int, data_key: bytes) -> bytes:
        """The key that seals under a version. Raises KeyUnavailable."""
        ...


def key_version_of(sealed: bytes) -> int:
    """The key version that a sealed value claims; authenticated only by opening it. Raises SealBroken for fewer than two bytes."""
    if len(sealed) < 2:
        raise SealBroken("a sealed value is cut off")
    return sealed[1]


@lru_cache(maxsize=1_024)
def _header(version: int, id: int) -> bytes:
    return bytes((_VERSION | _COMPRESSED, version)) + write_varint(id)


class Cipher:
    """Seals and opens values of one agent under its data key.

    data_key: 32 bytes. versions: the tenant's key; a value is then sealed by what its newest version and the data key give together, and opened
    by what the version that it names gives. Without: by the data key itself. key_version: 0 … 255, written into every seal then.
    dictionaries: the tenant's set, shared by its ciphers. plaintext_bytes_max: larger plaintexts are refused on both ways.
    """

    # The key of the version that was the newest when this was made stands by itself: hardly a cipher ever needs another, and what one append has to
    # fetch of its agent from memory is what grows dear where very many agents are at work.
    __slots__ = (
        "_aead",
        "_bound",
        "_data_key",
        "_dictionaries",
        "_key_version",
        "_others",
        "_plaintext_bytes_max",
        "_versions",
        "agent",
        "tenant",
    )

    def __init__(
        self,
        tenant: str,
        agent: str,
        data_key: bytes,
        dictionaries: Dictionaries,
        *,
        key_version: int = 1,
        versions: KeyVersions | None = None,
        plaintext_bytes_max: int = limits.SEALED_PLAINTEXT_BYTES_MAX,
    ) -> None:
        if len(data_key) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes, not {len(data_key)}")
        self.tenant = tenant
        self.agent = agent
        self._data_key = data_key
        self._versions = versions
        self._aead: AESGCM | None = None
        self._others: dict[int, AESGCM] | None = None
        self._bound = join_fields(_DOMAIN, tenant.encode(), agent.encode())
        self._dictionaries = dictionaries
        # Never changed, so that threads always find the key that belongs to it.
        self._key_version = key_version if versions is None else versions.version
        self._plaintext_bytes_max = plaintext_bytes_max

    def seal(self, context: bytes, plaintext: bytes) -> bytes:
        """The sealed form of a plaintext; the same context opens it. Raises LimitExceeded."""
        size = len(plaintext)
        if size > self._plaintext_bytes_max:
            raise LimitExceeded(
                f"{size} bytes are to be sealed, the limit is {self._plaintext_bytes_max}", tenant=self.tenant, agent=self.agent
            )
        version = self._key_version if self._versions is None else self._versions.version
        aead = self._find_aead(version)
        dictionary = self._dictionaries.newest if size <= limits.DICTIONARY_PLAINTEXT_BYTES_MAX else NO_DICTIONARY
        content = dictionary.compress(plaintext)
        if len(content) < size:
            header = _header(version, dictionary.id)
        else:
            content = plaintext
            header = bytes((_VERSION, version, 0))
        nonce = os.urandom(NONCE_BYTES)
        return header + nonce + aead.encrypt(nonce, content, self._associated(context, header))

    def open(self, context: bytes, sealed: bytes) -> bytes:
        """The plaintext of a sealed value.

        Raises SealBroken when a byte, the key, the tenant, the agent or the context is another one; KeyUnavailable when the tenant's key has to
        be loaded again, because the value names a version that is not known here; and DictionaryNotFound (only for an authentic value) when
        its dictionary has to be loaded first.
        """
        try:
            aead, id, start = self._read_header(sealed)
            body = start + NONCE_BYTES
            content = aead.decrypt(sealed[start:body], sealed[body:], self._associated(context, sealed[:start]))
        except (InvalidTag, ValueError) as error:
            raise self._broken("its authentication failed") from error
        # Only from here on are the header's fields known to be what was written.
        (plaintext,) = self._plaintexts(sealed[0], id, (content,))
        return plaintext

    def open_many(self, prefix: bytes, suffixes: Sequence[bytes], sealed: Sequence[bytes]) -> list[bytes]:
        """The plaintexts of many values, in order; the context of each is the prefix and its suffix, and all suffixes are of one length.

        For values that were sealed alike one after the other this takes half the time of `open`. Raises what `open` raises for the first that does
        not open; which one it is, `open` tells.
        """
        if len(suffixes) != len(sealed):
            raise self._broken(f"there are {len(suffixes)} contexts for {len(sealed)} values")
        opened: list[bytes] = []
        bound = self._bound + (len(prefix) + len(suffixes[0])).to_bytes(4, "big") + prefix if suffixes else b""
        first = 0
        while first < len(sealed):
            try:
                aead, id, start = self._read_header(sealed[first])
                header, body, last = sealed[first][:start], start + NONCE_BYTES, first + 1
                # A header ends where its varint ends, so all that begin with these bytes have the same one.
                while last < len(sealed) and sealed[last].startswith(header):
                    last += 1
                run = sealed[first:last]
                # All of it stays in C: there are thousands of these, and each takes no longer than a line of Python.
                nonces, bodies = map(itemgetter(slice(start, body)), run), map(itemgetter(slice(body, None)), run)
                associated = map(b"".join, zip(repeat(bound), suffixes[first:last], repeat(header)))
                contents = list(map(aead.decrypt, nonces, bodies, associated))
            except (InvalidTag, ValueError) as error:
                raise self._broken("its authentication failed") from error
            opened += self._plaintexts(header[0], id, contents)
            first = last
        return opened

    def _read_header(self, sealed: bytes) -> tuple[AESGCM, int, int]:
        """What to open a value with, the id of its dictionary, and where its nonce begins. Raises as `open`; ValueError for a broken varint."""
        if len(sealed) < _SIZE_MIN:
            raise self._broken("it is cut off")
        if sealed[0] & ~_COMPRESSED != _VERSION:
            raise self._broken(f"its format {sealed[0]:#04x} is unknown to this release")
        # Under the data key alone the byte says nothing: a changed one is noticed as a part of the header.
        version = self._key_version if self._versions is None else sealed[1]
        return (self._find_aead(version), *read_varint(sealed, 2))

    def _plaintexts(self, flags: int, id: int, contents: Sequence[bytes]) -> Sequence[bytes]:
        if not flags & _COMPRESSED:
            largest = max(map(len, contents))
            if largest > self._plaintext_bytes_max:
                raise self._broken(f"it holds {largest} bytes, the limit is {self._plaintext_bytes_max}")
            return contents
        dictionary = self._dictionaries.find(id) if id else NO_DICTIONARY
        if dictionary is None:
            raise DictionaryNotFound(
                f"a sealed value needs dictionary {id}",
                hint="load the tenant's dictionaries and open it again",
                tenant=self.tenant,
                agent=self.agent,
                dictionary=id,
            )
        try:
            return dictionary.decompress(contents, self._plaintext_bytes_max)
        except FrameBroken as error:
            raise self._broken(f"its content does not decompress: {error}") from error

    def _find_aead(self, version: int) -> AESGCM:
        """What seals and opens under a version of the tenant's key. Raises KeyUnavailable."""
        if version == self._key_version:
            if self._aead is None:
                self._aead = self._make_aead(version)
            return self._aead
        others = self._others
        if others is None:
            others = self._others = {}
        return others.get(version) or others.setdefault(version, self._make_aead(version))

    def _make_aead(self, version: int) -> AESGCM:
        return AESGCM(self._data_key if self._versions is None else self._versions.agent_key(version, self._data_key))

    def _associated(self, context: bytes, header: bytes) -> bytes:
        # The header comes last and the fields before it carry their lengths, so the whole is unambiguous.
        return self._bound + len(context).to_bytes(4, "big") + context + header

    def _broken(self, reason: str) -> SealBroken:
        return SealBroken(
            f"a sealed value cannot be opened: {reason}",
            hint="the stored bytes were changed, or they belong to another agent, tenant or event; run `perdure verify`",
            tenant=self.tenant,
            agent=self.agent,
        )
