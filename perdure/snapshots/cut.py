"""Where one chunk ends and the next begins. Pure.

Cells are encoded straight into the chunk that is open, so that a large state is copied once on its way to the codec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from perdure import limits
from perdure.errors import LimitExceeded
from perdure.snapshots.cells import HEADS, LIST, LIST_STEP, MAP, Group, cell_name

__all__ = ["Cut", "cut"]

_TAIL_BYTES: Final = 256
"""Of a unit, that tell whether a chunk ends with it."""
_HEADER_ROOM: Final = 3
"""Of an array of `LIST_STEP` values, at most."""
_FAR: Final = limits.MIB
"""Where chunks begin in the buffer from the second one on: a bytearray is moved when it shrinks below half of what it had, and when it grows
again, so it is kept from shrinking that far."""
_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_encode, _encode_into = _encoder.encode, _encoder.encode_into


class Cut(NamedTuple):
    """The cells of one chunk. first: name of the first one. plaintext: the chunk before it is compressed. digest: its SHA-256."""

    first: bytes
    cells: int
    plaintext: bytes
    digest: bytes


def cut(groups: Iterable[Group]) -> Iterator[Cut]:
    """Put cells together to chunks, in their order.

    A chunk ends where the last bytes of a unit say so (the larger the unit, the likelier), so that equal runs of cells are cut equally whatever
    stands before them; never below `CHUNK_BYTES_MIN`, at the latest from `CHUNK_BYTES_MAX` on. A large cell stands alone. Raises LimitExceeded.
    """
    cutter = _Cutter()
    for group in groups:
        if group.kind == LIST:
            yield from cutter.take_list(group)
        else:
            yield from cutter.take_one(group)
    yield from cutter.finish()


class _Run(msgspec.Struct):
    """Cells of one kind and member in a chunk. at: where their bytes begin."""

    kind: int
    member: str
    start: int
    key: str
    cells: int
    at: int


class _Cutter:
    """The chunk that is open: its runs, and their values one after the other, from `_begin` to `_end` in a buffer that serves chunk after chunk."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._body = bytearray(_HEADER_ROOM)
        self._begin = self._end = _HEADER_ROOM

    def take_list(self, group: Group) -> Iterator[Cut]:
        """Take over the elements of a list, a step at a time; gives the chunks that are complete thereby. Most cells come this way."""
        values, at = group.values, group.start
        while at < len(values):
            step_end = at - at % LIST_STEP + LIST_STEP
            step, body, mark = values[at:step_end], self._body, self._end
            # The array's header goes over the bytes before, which are put back: the values alone stay.
            header_bytes = 1 if len(step) < 16 else 3
            before = body[mark - header_bytes : mark]
            _encode_into(step, body, mark - header_bytes)
            body[mark - header_bytes : mark] = before
            if at % LIST_STEP or len(body) - mark > limits.CHUNK_UNIT_BYTES_MAX:
                # Elements that are large together stand by themselves; a list is begun between two steps only where they did before.
                for index, value in enumerate(step, at):
                    _encode_into(value, self._body, self._end)
                    yield from self._add(group, index)
            else:
                self._append(group, at, len(step))
                if self._complete(mark):
                    yield from self.finish()
            at = step_end

    def take_one(self, group: Group) -> Sequence[Cut]:
        """Take over a map's element or a head; the chunks that are complete thereby."""
        _encode_into(group.key, self._body, self._end)
        _encode_into(group.values[0], self._body, len(self._body))
        return self._add(group, group.start)

    def finish(self) -> Sequence[Cut]:
        """The chunk that is open, as it is; nothing where it is empty."""
        if not self._runs:
            return ()
        runs, ends = self._runs, [*(run.at for run in self._runs[1:]), self._end]
        with memoryview(self._body) as body:
            parts: list[bytes | memoryview] = [_array_header(len(runs))]
            for run, end in zip(runs, ends, strict=True):
                parts += (_run_header(run), body[run.at : end])
            plaintext = b"".join(parts)
            parts.clear()  # nothing may look into the buffer when it grows again
        if self._begin != _FAR:
            self._body, self._begin = bytearray(_FAR), _FAR
        self._runs, self._end = [], self._begin
        first = runs[0]
        name = cell_name(first.kind, first.member, first.start, first.key)
        return (Cut(name, sum(run.cells for run in runs), plaintext, sha256(plaintext).digest()),)

    def _add(self, group: Group, start: int) -> Sequence[Cut]:
        """What stands behind the end is a unit of one cell; the chunks that are complete thereby."""
        mark = self._end
        if len(self._body) - mark > limits.INLINE_BYTES_MAX:
            return self._add_large(group, start)
        self._append(group, start, 1)
        return self.finish() if self._complete(mark) else ()

    def _complete(self, mark: int) -> bool:
        """Whether the chunk ends with the unit that begins at `mark`."""
        end = self._end
        size_bytes = end - self._begin
        if size_bytes < limits.CHUNK_BYTES_MIN:
            return False
        tail = self._body[max(mark, end - _TAIL_BYTES) : end]
        return size_bytes >= limits.CHUNK_BYTES_MAX or crc32(tail) * limits.CHUNK_BYTES_STEP < end - mark << 32

    def _add_large(self, group: Group, start: int) -> Sequence[Cut]:
        alone = self._body[self._end :]
        if len(alone) > limits.CHUNK_CELL_BYTES_MAX:
            limit = limits.CHUNK_CELL_BYTES_MAX
            raise LimitExceeded(f"a cell has {len(alone)} bytes, the limit is {limit}", member=group.member or group.key)
        before = self.finish()
        self._body[self._begin :] = alone
        self._append(group, start, 1)
        return (*before, *self.finish())

    def _append(self, group: Group, start: int, cells: int) -> None:
        runs = self._runs
        if runs and runs[-1].kind == group.kind and runs[-1].member == group.member:
            runs[-1].cells += cells
        else:
            runs.append(_Run(group.kind, group.member, start, group.key, cells, self._end))
        self._end = len(self._body)


def _run_header(run: _Run) -> bytes:
    if run.kind == LIST:
        return b"\x94\x00" + _encode(run.member) + _encode(run.start) + _array_header(run.cells)
    if run.kind == MAP:
        return b"\x93\x01" + _encode(run.member) + _map_header(run.cells)
    assert run.kind == HEADS
    return b"\x92\x02" + _map_header(run.cells)


def _array_header(count: int) -> bytes:
    return _container_header(count, 0x90, 0xDC)


def _map_header(count: int) -> bytes:
    return _container_header(count, 0x80, 0xDE)


def _container_header(count: int, short: int, long: int) -> bytes:
    """msgpack's, as short as it can be: `short` holds up to 15 itself, `long` has 2 bytes behind it and the type after that one 4."""
    if count < 16:
        return bytes((short | count,))
    return bytes((long,)) + count.to_bytes(2, "big") if count < 1 << 16 else bytes((long + 1,)) + count.to_bytes(4, "big")
