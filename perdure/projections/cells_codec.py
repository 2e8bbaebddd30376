"""A state as a cache holds it: cells sealed one by one while they are new, in packs when they are older, beside a record.

- A loose cell `[name, value]` (`[name]`: removed) is what an event costs. Its name in the cache is BLAKE2b-128 of the cell's name, keyed with
  16 random bytes that are made anew with every whole write: member names may be personal data and never stand in a cache.
- When `LOOSE_MAX` cells are loose, they become a pack, sealed as one: opening a seal costs more than decoding what is in it. Later packs go
  before earlier ones, loose cells before packs. When the packs hold too much that is no longer true, the state is written whole.
- The record `r` holds `[time_us, chain, name_key, packs]`; its seal is bound to the token, and every other seal to the name key. So a token
  that was tampered with, or a cell of another agent or of an earlier whole write, is recognised when the state is opened.

What somebody who can write to the cache can do undetected is to put an earlier value of the same cell back in place; a check against the log
(`perdure.projections.cache_check`) finds that. The bytes are specified in docs/format/redis.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from perdure import limits
from perdure.engine.cells import join, split
from perdure.errors import DictionaryNotFound, IntegrityError, SealBroken
from perdure.projections.contract import CachedState, CellWrite, Token
from perdure.security.cipher import Cipher

__all__ = ["CACHE_DAMAGE", "LOOSE_MAX", "PACK_CELLS_MAX", "RECORD", "Layout", "Opened", "open_state", "seal_step", "seal_whole"]

RECORD: Final = b"r"
"""The name of the record; packs' names have 5 bytes and hidden names 16, so none can be taken for another."""
LOOSE_MAX: Final = 8
"""Cells that stand alone before they become a pack."""
PACK_CELLS_MAX: Final = 64
PACK_BYTES_MAX: Final = 256 * limits.KIB
"""Plaintext bytes of a pack; a larger cell has one of its own."""
PART_BYTES_MAX: Final = 2 * limits.MIB
"""Plaintext bytes of one seal in a pack; only a cell that is larger needs several."""
GARBAGE_FREE: Final = 64
"""Cells that packs may hold beyond twice the live ones before the state is written whole."""
NAME_KEY_BYTES: Final = 16
LAYOUT_ID_BYTES: Final = 8
_NAME_BYTES: Final = 16
_PACK_NAME_BYTES: Final = 5
_CELL: Final = b"state-cell"
_PACK: Final = b"state-pack"
_RECORD: Final = b"state-record"
_TOKEN = struct.Struct(">QQQ")
_PART = struct.Struct(">II")
_ONE_PART = _PART.pack(0, 1)
_ARRAY32: Final = 0xDD

CACHE_DAMAGE: Final = (SealBroken, IntegrityError, DictionaryNotFound)
"""What `open_state` raises for a cached state that cannot be used; the log has the truth."""


class _Record(msgspec.Struct, frozen=True, array_like=True):
    time_us: int
    chain: bytes
    name_key: bytes
    packs: int


class Layout:
    """How a state lies in the cache. id: names the whole write, in the open; loose: plaintext of the loose cells by name; packs, packed_cells:
    how many there are."""

    __slots__ = ("id", "loose", "name_key", "packed_cells", "packs")

    def __init__(self, name_key: bytes | None = None, id: str | None = None) -> None:
        self.id = os.urandom(LAYOUT_ID_BYTES).hex() if id is None else id
        self.name_key = name_key or os.urandom(NAME_KEY_BYTES)
        self.loose: dict[bytes, bytes] = {}
        self.packs = 0
        self.packed_cells = 0

    def worn(self, live_cells: int) -> bool:
        """Whether so much of the packs is overwritten that the state is better written whole."""
        return self.packed_cells > 2 * live_cells + GARBAGE_FREE


class Opened(NamedTuple):
    """A cached state: document, time (unix microseconds) and chain hash of its newest event, and how it lies in the cache."""

    document: dict[str, Any]
    time_us: int
    chain: bytes
    layout: Layout


_encode = msgspec.msgpack.Encoder().encode
_decode_cell = msgspec.msgpack.Decoder(list[Any]).decode
_decode_pack = msgspec.msgpack.Decoder(list[list[Any]]).decode
_decode_record = msgspec.msgpack.Decoder(_Record).decode


def seal_whole(cipher: Cipher, token: Token, time_us: int, chain: bytes, document: Mapping[str, Any]) -> tuple[CellWrite, Layout]:
    """The write that replaces whatever is older by this document, and the layout that it leads to."""
    layout = Layout()
    put = dict(_seal_packs(cipher, layout, [_encode((name, value)) for name, value in split(document).items()]))
    return _write(cipher, None, token, time_us, chain, layout, put, ()), layout


def seal_step(
    cipher: Cipher,
    expected: int,
    token: Token,
    time_us: int,
    chain: bytes,
    layout: Layout,
    put: Mapping[bytes, Any],
    remove: Iterable[bytes],
) -> CellWrite:
    """The write that leads from version `expected` to the token, by what `engine.cells.touched` returned. The layout goes along with it."""
    changed = {name: _encode((name, value)) for name, value in put.items()}
    for name in remove:
        changed[name] = _encode((name,))
    key = layout.name_key
    if len(layout.loose.keys() | changed.keys()) <= LOOSE_MAX and sum(map(len, changed.values())) <= PACK_BYTES_MAX:
        layout.loose.update(changed)
        context, seal = _CELL + key, cipher.seal
        sealed = {_hide(name, key): seal(context, plaintext) for name, plaintext in changed.items()}
        return _write(cipher, expected, token, time_us, chain, layout, sealed, ())
    gone = [_hide(name, key) for name in layout.loose]
    cells, layout.loose = {**layout.loose, **changed}, {}
    return _write(cipher, expected, token, time_us, chain, layout, dict(_seal_packs(cipher, layout, cells.values())), gone)


def open_state(cipher: Cipher, state: CachedState) -> Opened:
    """Open a cached state.

    Raises SealBroken or IntegrityError when the cache holds something else than what was written, DictionaryNotFound when a compression
    dictionary is not loaded. To a caller each of them is a miss.
    """
    sealed = state.cells.get(RECORD)
    if sealed is None:
        raise IntegrityError("a cached state has no record", tenant=cipher.tenant, agent=cipher.agent)
    try:
        record = _decode_record(cipher.open(_RECORD + _TOKEN.pack(*state.token), sealed))
        layout = Layout(record.name_key, state.layout)
        cells = _open_packs(cipher, state.cells, layout)
        for name, plaintext in _open_loose(cipher, state.cells, layout.name_key):
            layout.loose[name] = plaintext
            _lay(cells, _decode_cell(plaintext))
    except (msgspec.MsgspecError, ValueError) as problem:
        raise IntegrityError(f"a cached cell is not readable: {problem}", tenant=cipher.tenant, agent=cipher.agent) from problem
    if layout.packs != record.packs or 1 + layout.packs + len(layout.loose) != len(state.cells):
        raise IntegrityError("a cached state lacks a cell, or has one too many", tenant=cipher.tenant, agent=cipher.agent)
    return Opened(join(cells), record.time_us, record.chain, layout)


def _write(
    cipher: Cipher,
    expected: int | None,
    token: Token,
    time_us: int,
    chain: bytes,
    layout: Layout,
    put: dict[bytes, bytes],
    remove: Iterable[bytes],
) -> CellWrite:
    record = _Record(time_us, chain, layout.name_key, layout.packs)
    put[RECORD] = cipher.seal(_RECORD + _TOKEN.pack(*token), _encode(record))
    count = 1 + layout.packs + len(layout.loose)
    return CellWrite(cipher.tenant, cipher.agent, expected, token, put, list(remove), count, layout.id)


def _seal_packs(cipher: Cipher, layout: Layout, cells: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Further packs of these cells, by name."""
    for group in _grouped(cells):
        name = b"p" + layout.packs.to_bytes(4, "big")
        plaintext = bytes((_ARRAY32,)) + len(group).to_bytes(4, "big") + b"".join(group)
        layout.packs += 1
        layout.packed_cells += len(group)
        yield name, _seal_parts(cipher, _PACK + layout.name_key + name, plaintext)


def _seal_parts(cipher: Cipher, context: bytes, plaintext: bytes) -> bytes:
    """One seal for each `PART_BYTES_MAX`, each with its length before it and bound to its place and to how many there are."""
    starts = range(0, len(plaintext), PART_BYTES_MAX)
    sealed = bytearray()
    for number, start in enumerate(starts):
        part = cipher.seal(context + _PART.pack(number, len(starts)), plaintext[start : start + PART_BYTES_MAX])
        sealed += len(part).to_bytes(4, "big") + part
    return bytes(sealed)


def _open_parts(cipher: Cipher, context: bytes, sealed: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < len(sealed):
        end = at + 4 + int.from_bytes(sealed[at : at + 4], "big")
        parts.append(sealed[at + 4 : end])
        at = end
    if len(parts) == 1:
        return cipher.open(context + _ONE_PART, parts[0])
    return b"".join(cipher.open(context + _PART.pack(number, len(parts)), part) for number, part in enumerate(parts))


def _grouped(cells: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size_bytes = 0
    for cell in cells:
        if group and (len(group) >= PACK_CELLS_MAX or size_bytes + len(cell) > PACK_BYTES_MAX):
            yield group
            group, size_bytes = [], 0
        group.append(cell)
        size_bytes += len(cell)
    if group:
        yield group


def _open_packs(cipher: Cipher, sealed: Mapping[bytes, bytes], layout: Layout) -> dict[bytes, Any]:
    cells: dict[bytes, Any] = {}
    context = _PACK + layout.name_key
    for name in sorted(name for name in sealed if len(name) == _PACK_NAME_BYTES):
        pack = _decode_pack(_open_parts(cipher, context + name, sealed[name]))
        for cell in pack:
            _lay(cells, cell)
        layout.packs += 1
        layout.packed_cells += len(pack)
    return cells


def _open_loose(cipher: Cipher, sealed: Mapping[bytes, bytes], key: bytes) -> Iterator[tuple[bytes, bytes]]:
    context, opener = _CELL + key, cipher.open
    for hidden, value in sealed.items():
        if len(hidden) == _NAME_BYTES:
            plaintext = opener(context, value)
            name = _decode_cell(plaintext)[0]
            if _hide(name, key) != hidden:
                raise ValueError("a cell stands under the name of another")
            yield name, plaintext


def _lay(cells: dict[bytes, Any], cell: list[Any]) -> None:
    """Lay a cell over the ones before it."""
    if len(cell) == 2:
        cells[cell[0]] = cell[1]
    else:
        cells.pop(cell[0], None)


def _hide(name: bytes, key: bytes) -> bytes:
    return blake2b(name, digest_size=_NAME_BYTES, key=key).digest()
