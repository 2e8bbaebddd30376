"""Documents and changes for property tests: few and short names, so that changes meet what is there."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from perdure.engine.changes import Change

KEYS = st.sampled_from(["a", "b", "c", "0", "1", "2", "ä\0", ""])
TOKENS = st.sampled_from(["a", "b", "0", "1", "2", "7", "01", "-", "ä\0", ""])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 1.5, -(2**63), 2**64 - 1, b"", b"x", "", "x", "1"]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10)
MAPS = st.dictionaries(KEYS, VALUES, max_size=4)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Any change that the check accepts."""
    operation: Any = draw(st.sampled_from(["set", "delete", "append", "insert", "merge"]))
    path = tuple(draw(st.lists(TOKENS, min_size=1 if operation in ("append", "insert") else 0, max_size=3)))
    if operation == "insert":
        path = (*path[:-1], draw(st.sampled_from(["0", "1", "2", "7", "-"])))
    if operation == "delete":
        return Change(operation, path)
    if operation == "merge":
        return Change(operation, path, draw(MAPS if not path else MAPS | VALUES))
    return Change(operation, path, draw(VALUES if path else MAPS))


CHANGES = st.lists(changes(), max_size=6).map(tuple)
