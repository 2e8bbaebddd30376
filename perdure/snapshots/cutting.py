"""Where a state is cut into chunks, and which of an earlier manifest's chunks need no second look. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from perdure.snapshots.cells import CellWalk
from perdure.snapshots.chunks import ChunkReference
from perdure.snapshots.cut import Cut, cut

__all__ = ["Piece", "pieces"]

Piece = Cut | ChunkReference


def pieces(document: Mapping[str, Any], shared: Sequence[ChunkReference], touched: Iterable[bytes] | None) -> Iterator[Piece]:
    """The chunks of a document in order: cut, or taken over from `shared` without a look at their cells.

    touched: names of all cells that differ from those in `shared`; None: unknown. Either way the chunks are the same, because where a chunk ends
    follows from its own cells and from the one after them alone.
    """
    walk = CellWalk(document)
    if touched is None or not shared:
        yield from cut(walk.groups())
        return
    dirty = _dirty(walk, [chunk.first for chunk in shared], touched)
    clean = {chunk.first: place for place, chunk in enumerate(shared) if not dirty[place]}
    place = 0
    while place < len(shared):
        if dirty[place]:
            place = yield from _cut_again(walk, shared, clean, place)
        else:
            yield shared[place]
            place += 1


def _cut_again(walk: CellWalk, shared: Sequence[ChunkReference], clean: Mapping[bytes, int], place: int) -> Generator[Piece, None, int]:
    """Cut from the chunk at `place` on, until a cut begins where a clean chunk does; the place of that one."""
    for piece in cut(walk.groups(shared[place].first if place else b"")):
        known = clean.get(piece.first, -1)
        # The digests are compared because that costs nothing here: a caller that forgot to name a cell is found out sooner.
        if known > place and shared[known].digest == piece.digest:
            return known
        yield piece
    return len(shared)


def _dirty(walk: CellWalk, firsts: Sequence[bytes], touched: Iterable[bytes]) -> list[bool]:
    """Which chunks may hold other cells than before, or end elsewhere."""
    dirty = [False] * len(firsts)
    for name in touched:
        dirty[max(0, bisect_right(firsts, name) - 1)] = True
    for place in [place for place, is_dirty in enumerate(dirty) if is_dirty]:
        # Where a chunk ends depends on the first cell after it, and list elements of one step are looked at together.
        before = place - 1
        while before >= 0 and not dirty[before]:
            dirty[before] = True
            if walk.inside_step(firsts[before]):
                before -= 1
    return dirty
