"""Changes and their paths."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import limits
from perdure.engine.changes import Change, append, delete, format_path, insert, merge, parse_path, set_value
from perdure.errors import InvalidPath, LimitExceeded

from .strategies import CHANGES


@pytest.mark.parametrize(
    ("pointer", "tokens"),
    [
        ("", ()),
        ("/", ("",)),
        ("/foo/0", ("foo", "0")),
        ("/a~1b", ("a/b",)),
        ("/m~0n", ("m~n",)),
        ("/~01", ("~1",)),
        ('/ /c%d/k"l', (" ", "c%d", 'k"l')),
        ("//", ("", "")),
    ],
)
def test_pointers_are_read_and_written_as_rfc_6901_says(pointer: str, tokens: tuple[str, ...]) -> None:
    assert parse_path(pointer) == tokens
    assert format_path(tokens) == pointer
    assert parse_path(tokens) == tokens


@given(st.lists(st.text(alphabet="ab~/01ä", max_size=5), max_size=5).map(tuple))
def test_every_path_has_a_pointer_that_leads_back(tokens: tuple[str, ...]) -> None:
    assert parse_path(format_path(tokens)) == tokens


@pytest.mark.parametrize("path", ["a", "a/b", "/~", "/~2", "/a~/b", ("a", 1)])
def test_what_is_no_pointer_is_refused(path: Any) -> None:
    with pytest.raises(InvalidPath):
        parse_path(path)


def test_depth_and_length_of_a_path_are_limited() -> None:
    parse_path("/a" * limits.PATH_DEPTH_MAX)
    parse_path("/" + "a" * limits.KEY_LENGTH_MAX)
    for path in ("/a" * (limits.PATH_DEPTH_MAX + 1), "/" + "a" * (limits.KEY_LENGTH_MAX + 1)):
        with pytest.raises(LimitExceeded):
            parse_path(path)


def test_each_operation_has_its_maker() -> None:
    assert [set_value("/a/b", 1), delete("/a"), append("/a", 1), insert("/a/0", 1), merge("", {"a": 1})] == [
        Change("set", ("a", "b"), 1),
        Change("delete", ("a",)),
        Change("append", ("a",), 1),
        Change("insert", ("a", "0"), 1),
        Change("merge", (), {"a": 1}),
    ]
    assert set_value("/a~1b", 1).pointer == "/a~1b"


@given(CHANGES)
def test_changes_survive_storage(changes: tuple[Change, ...]) -> None:
    stored = msgspec.msgpack.encode(changes)
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(stored, type=tuple[Change, ...])) == stored
