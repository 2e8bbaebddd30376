"""The local store beside a dict: whatever is done to both, they tell the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import InvalidInput, LimitExceeded, ObjectNotFound
from perdure.snapshots.store.contract import is_name
from perdure.snapshots.store.files import ObjectFolder

# Few letters, so that names meet: as objects of each other's folders, as prefixes, in the order of '-', '.', '/' and '0'.
SEGMENT = st.text("ab-.0", min_size=1, max_size=3).filter(lambda text: not text.startswith("."))
NAME = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)
STEP = st.one_of(
    st.tuples(st.just("put"), NAME, st.binary(max_size=20)),
    st.tuples(st.just("get"), NAME, st.integers(0, 25)),
    st.tuples(st.just("delete"), NAME, st.none()),
    st.tuples(st.just("list"), NAME.map(lambda name: name + "/") | st.just(""), NAME | st.just("")),
)


def in_the_way(objects: dict[str, bytes], name: str) -> bool:
    """Whether an object is where the name's folder would be, or the other way round: S3 would take both, files cannot."""
    return any(other.startswith(name + "/") or name.startswith(other + "/") for other in objects)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_a_store_is_a_dict_that_forgets_nothing(steps: list[tuple[str, str, object]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        run(ObjectFolder(Path(root)), steps)


def run(folder: ObjectFolder, steps: list[tuple[str, str, object]]) -> None:
    objects: dict[str, bytes] = {}
    made: set[str] = set()  # folders stay when their last object goes
    for step, name, argument in steps:
        if step == "put":
            assert isinstance(argument, bytes)
            if in_the_way(objects, name) or name in made:
                try:
                    folder.put(name, argument)
                except InvalidInput:
                    continue
                raise AssertionError(f"{name} was taken although something is in the way")
            assert folder.put(name, argument) is (name not in objects)
            objects.setdefault(name, argument)
            parts = name.split("/")
            made.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        elif step == "get":
            assert read(folder, name, int(str(argument))) == expected(objects, name, int(str(argument)))
        elif step == "delete":
            if name not in made:
                folder.delete(name)
                objects.pop(name, None)
        else:
            after = str(argument)
            wanted = sorted(other for other in objects if other.startswith(name) and other > after)
            assert [facts.name for facts in folder.page(name, after, 1_000)] == wanted
            assert [facts.name for facts in folder.page(name, after, 2)] == wanted[:2]
    assert {facts.name: facts.size_bytes for facts in folder.page("", "", 1_000)} == {
        name: len(content) for name, content in objects.items()
    }


def read(folder: ObjectFolder, name: str, bytes_max: int) -> bytes | type[Exception]:
    try:
        return folder.get(name, bytes_max)
    except (ObjectNotFound, LimitExceeded) as error:
        return type(error)


def expected(objects: dict[str, bytes], name: str, bytes_max: int) -> bytes | type[Exception]:
    if name not in objects:
        return ObjectNotFound
    return objects[name] if len(objects[name]) <= bytes_max else LimitExceeded


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20) | NAME)
def test_a_name_is_one_that_stays_below_the_root(text: str) -> None:
    if is_name(text):
        path = Path("/root/of/store") / text
        assert path.is_relative_to("/root/of/store")
        assert ".." not in path.parts
        assert text == path.relative_to("/root/of/store").as_posix()
        assert text.isascii()
        assert not any(part.startswith(".") for part in text.split("/"))
