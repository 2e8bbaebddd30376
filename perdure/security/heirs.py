"""Keys that came with an agent from another engine.

An agent that moves keeps every sealed byte of its history: the hash chain covers them. So its new engine must open what the old one sealed. It
gets the *agent's* keys for that, derived under the old tenant key, never the tenant key itself; and a new data key of its own, under which
everything new is sealed, so that the old engine can open nothing that is written after the move.

The agent's **key material** is the data key, 32 bytes, followed, where there is anything to inherit, by msgpack: an array of eras. An era is what
one earlier engine sealed: its keys by the version byte of a seal, and which dictionaries of the tenant have other numbers here. It is wrapped
as a data key is; who destroys the one has destroyed the other. Which key opens a value is told by its authentication, which no wrong key passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from perdure.errors import DictionaryNotFound, KeyUnavailable, LimitExceeded, PerdureError, SealBroken
from perdure.limits import AGENT_ERAS_MAX
from perdure.security.cipher import KEY_BYTES, Cipher, Dictionaries, KeyVersions
from perdure.security.compression import Dictionary

__all__ = ["Era", "HeirCipher", "cipher_for", "join_material", "split_material"]

_SMALLEST: Final = 2


class Era(msgspec.Struct, frozen=True, array_like=True):
    """keys: (version byte of a seal, AES key of 32 bytes). dictionaries: id in those seals → id here, where they differ."""

    keys: list[tuple[int, bytes]]
    dictionaries: dict[int, int]


_decoder = msgspec.msgpack.Decoder(list[Era])


def join_material(data_key: bytes, eras: Sequence[Era]) -> bytes:
    """The key material. Raises LimitExceeded after `limits.AGENT_ERAS_MAX` moves."""
    if len(eras) > AGENT_ERAS_MAX:
        raise LimitExceeded(f"the agent has moved between engines {len(eras)} times, the limit is {AGENT_ERAS_MAX}")
    return data_key + (msgspec.msgpack.encode(list(eras)) if eras else b"")


def split_material(material: bytes) -> tuple[bytes, list[Era]]:
    """(data key, eras) of key material. Raises SealBroken."""
    if len(material) == KEY_BYTES:
        return material, []
    try:
        return material[:KEY_BYTES], _decoder.decode(material[KEY_BYTES:])
    except msgspec.MsgspecError as problem:
        raise SealBroken("the keys that an agent inherited are damaged") from problem


def cipher_for(tenant: str, agent: str, material: bytes, dictionaries: Dictionaries, *, versions: KeyVersions) -> Cipher:
    """The agent's cipher, made from its key material."""
    data_key, eras = split_material(material)
    if not eras:
        return Cipher(tenant, agent, data_key, dictionaries, versions=versions)
    return HeirCipher(tenant, agent, data_key, eras, dictionaries, versions=versions)


class _Renumbered:
    """The tenant's dictionaries by the numbers that another engine gave them."""

    def __init__(self, here: Dictionaries, numbers: Mapping[int, int]) -> None:
        self._here = here
        self._numbers = numbers

    @property
    def newest(self) -> Dictionary:
        return self._here.newest

    def find(self, id: int) -> Dictionary | None:
        return self._here.find(self._numbers.get(id, id))


class HeirCipher(Cipher):
    """Seals under the agent's own key, and opens what earlier engines sealed as well."""

    __slots__ = ("_heirlooms", "_last", "_own")

    def __init__(
        self, tenant: str, agent: str, data_key: bytes, eras: Iterable[Era], dictionaries: Dictionaries, *, versions: KeyVersions
    ) -> None:
        super().__init__(tenant, agent, data_key, dictionaries, versions=versions)
        self._own = Cipher(tenant, agent, data_key, dictionaries, versions=versions)
        self._heirlooms: dict[int, list[Cipher]] = {}
        for era in eras:
            numbered = _Renumbered(dictionaries, era.dictionaries)
            for version, key in era.keys:
                self._heirlooms.setdefault(version, []).append(Cipher(tenant, agent, key, numbered, key_version=version))
        self._last = self._own

    def open(self, context: bytes, sealed: bytes) -> bytes:
        """See `Cipher.open`. The key that opened the value before is tried first: neighbours were sealed alike."""
        inherited = self._heirlooms.get(sealed[1], ()) if len(sealed) >= _SMALLEST else ()
        if not inherited:
            return self._own.open(context, sealed)
        problem: PerdureError | None = None
        for cipher in self._order(inherited):
            try:
                opened = cipher.open(context, sealed)
            except DictionaryNotFound:
                raise  # told of authentic values only
            except (SealBroken, KeyUnavailable) as failed:
                # A version that is not known here is the better reason: once it is loaded, the value may open.
                problem = failed if problem is None or isinstance(failed, KeyUnavailable) else problem
            else:
                self._last = cipher
                return opened
        assert problem is not None, "the own cipher is always tried"
        raise problem

    def _order(self, inherited: Sequence[Cipher]) -> list[Cipher]:
        last = self._last
        return [last, *(each for each in (*inherited, self._own) if each is not last)]

    def open_many(self, prefix: bytes, suffixes: Sequence[bytes], sealed: Sequence[bytes]) -> list[bytes]:
        """See `Cipher.open_many`. Mostly one key opens all of them: the one that opened the value before, or the one that opens the first."""
        before = self._last
        for _ in range(2):
            try:
                return self._last.open_many(prefix, suffixes, sealed)
            except (SealBroken, KeyUnavailable):
                self.open(prefix + suffixes[0], sealed[0])  # from here on its key is the one that is tried
                if self._last is before:
                    break
        return self._each(prefix, suffixes, sealed)

    def _each(self, prefix: bytes, suffixes: Sequence[bytes], sealed: Sequence[bytes]) -> list[bytes]:
        return [self.open(prefix + suffix, value) for suffix, value in zip(suffixes, sealed, strict=True)]
