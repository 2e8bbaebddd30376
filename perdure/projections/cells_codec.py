"""A state as a cache holds it: every cell sealed, its name hidden, and a record cell that says what the state is.

- A cell's plaintext is msgpack `[name, value]`, sealed for the agent with the context `state-cell`.
- Its name in the cache is BLAKE2b-128 of the cell's name, keyed with 16 random bytes that are made anew with every whole write. So member names
  (which may be personal data) never stand in a cache, and equal names of two agents look unrelated.
- The record cell `r` holds `[time_us, chain, name_key]`, sealed with the context `state-record` + the token: a token that was tampered with
  is recognised when the state is opened, and a reader learns the chain hash and time of the state's newest event.

What an attacker who can write to the cache can do undetected is to put an older value of the same cell of the same agent in place; a check
against the log (`perdure.projections.cache_check`) finds that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from perdure.engine.cells import join, split
from perdure.errors import DictionaryNotFound, IntegrityError, SealBroken
from perdure.projections.contract import CachedState, CellWrite, Token
from perdure.security.cipher import Cipher

__all__ = ["RECORD", "StateRecord", "new_name_key", "open_state", "seal_step", "seal_whole"]

RECORD: Final = b"r"
"""The name of the record cell; hidden names have 16 bytes, so none can be taken for it."""
NAME_KEY_BYTES: Final = 16
_NAME_BYTES: Final = 16
_CELL_CONTEXT: Final = b"state-cell"
_RECORD_CONTEXT: Final = b"state-record"
_TOKEN = struct.Struct(">QQQ")


class StateRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a state is besides its token: the time (unix microseconds) and chain hash of its newest event, and the key of its cells' names."""

    time_us: int
    chain: bytes
    name_key: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_cell = msgspec.msgpack.Decoder(tuple[bytes, Any]).decode
_decode_record = msgspec.msgpack.Decoder(StateRecord).decode


def new_name_key() -> bytes:
    """A random key for the cell names of one state."""
    return os.urandom(NAME_KEY_BYTES)


def seal_whole(cipher: Cipher, token: Token, record: StateRecord, document: Mapping[str, Any]) -> CellWrite:
    """The write that replaces whatever is older by this document."""
    return _seal(cipher, None, token, record, split(document), (), 0)


def seal_step(
    cipher: Cipher,
    expected: int,
    token: Token,
    record: StateRecord,
    put: Mapping[bytes, Any],
    remove: Iterable[bytes],
    cell_count: int,
) -> CellWrite:
    """The write that leads from version `expected` to the token. cell_count: the cells of the whole document then."""
    return _seal(cipher, expected, token, record, put, remove, cell_count)


def _seal(
    cipher: Cipher,
    expected: int | None,
    token: Token,
    record: StateRecord,
    put: Mapping[bytes, Any],
    remove: Iterable[bytes],
    cell_count: int,
) -> CellWrite:
    key, seal = record.name_key, cipher.seal
    sealed = {_hide(name, key): seal(_CELL_CONTEXT, _encode((name, value))) for name, value in put.items()}
    count = 1 + (len(sealed) if expected is None else cell_count)
    sealed[RECORD] = seal(_RECORD_CONTEXT + _TOKEN.pack(*token), _encode(record))
    return CellWrite(cipher.tenant, cipher.agent, expected, token, sealed, [_hide(name, key) for name in remove], count)


def open_state(cipher: Cipher, state: CachedState) -> tuple[dict[str, Any], StateRecord]:
    """The document and record of a cached state.

    Raises SealBroken or IntegrityError when the cache holds something else than what was written, DictionaryNotFound when a compression
    dictionary is not loaded. To a caller each of them is a miss.
    """
    opener = cipher.open
    sealed = state.cells.get(RECORD)
    if sealed is None:
        raise IntegrityError("a cached state has no record", tenant=cipher.tenant, agent=cipher.agent)
    try:
        record = _decode_record(opener(_RECORD_CONTEXT + _TOKEN.pack(*state.token), sealed))
        cells = dict(_decode_cell(opener(_CELL_CONTEXT, value)) for name, value in state.cells.items() if name != RECORD)
    except msgspec.MsgspecError as problem:
        raise IntegrityError(f"a cached cell is not readable: {problem}", tenant=cipher.tenant, agent=cipher.agent) from problem
    if len(cells) != len(state.cells) - 1:
        raise IntegrityError("two cached cells have one name", tenant=cipher.tenant, agent=cipher.agent)
    return join(cells), record


def _hide(name: bytes, key: bytes) -> bytes:
    return blake2b(name, digest_size=_NAME_BYTES, key=key).digest()


CACHE_DAMAGE: Final = (SealBroken, IntegrityError, DictionaryNotFound)
"""What `open_state` raises for a cached state that cannot be used; the log has the truth."""
