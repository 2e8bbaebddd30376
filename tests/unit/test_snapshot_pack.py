"""Packing and unpacking: what comes out is what went in, and little is made twice."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.engine.cells import shape, split, touched
from perdure.engine.changes import Change
from perdure.engine.digest import digest
from perdure.engine.fold import apply
from perdure.snapshots.cells import CellWalk, cell_name
from perdure.snapshots.codecs import CODECS
from perdure.snapshots.manifest import open_manifest
from perdure.snapshots.pack import pack, unpack
from tests.unit.fix_snapshots import conversation, make_keys, small_chunks, state_of, store
from tests.unit.strategies import CHANGES, DOCUMENTS

KEYS = make_keys()


@given(DOCUMENTS)
def test_a_walk_meets_every_cell_in_the_order_of_names(document: dict[str, Any]) -> None:
    groups = list(CellWalk(document).groups())
    names = [cell_name(group.kind, group.member, group.start, group.key) for group in groups]
    assert names == sorted(names)
    assert set(names) <= split(document).keys()
    assert sum(len(group.values) - group.start for group in groups) == len(split(document))
    for place, name in enumerate(names):
        assert list(CellWalk(document).groups(name)) == groups[place:]


@settings(max_examples=60)
@given(DOCUMENTS, st.sampled_from(sorted(CODECS)))
def test_a_state_survives_packing(document: dict[str, Any], codec: str) -> None:
    stored = store(state_of(document), KEYS, codec=codec)
    manifest = open_manifest(stored.sealed, keys=KEYS, tenant="acme", agent="one", version=7)
    assert manifest == stored.manifest
    back = unpack(manifest, stored.in_order(KEYS), keys=KEYS)
    assert digest(back.document) == digest(document)
    assert back[1:] == state_of(document)[1:]


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_an_appended_message_costs_the_last_chunk(codec: str) -> None:
    document = conversation(6_000)
    first = store(state_of(document), KEYS, codec=codec)
    document["messages"].append({"role": "user", "content": "one more"})
    second = store(state_of(document, 8), KEYS, first, codec=codec, kind="incremental")
    assert len(first.chunks) > 8
    assert len(second.chunks) - len(first.chunks) <= 2
    assert unpack(second.manifest, second.in_order(KEYS), keys=KEYS).document == document


def test_a_changed_cell_costs_its_own_chunk() -> None:
    document = conversation(6_000)
    first = store(state_of(document), KEYS)
    document["messages"][1_000]["content"] = "changed"
    second = store(state_of(document, 8), KEYS, first)
    assert len(second.chunks) - len(first.chunks) <= 3


def test_equal_chunks_of_a_tenant_are_one_object_and_of_two_tenants_never() -> None:
    state = state_of(conversation(500))
    one, other = store(state, KEYS), store(state, make_keys(agent="two", data_key=9))
    assert one.chunks == other.chunks
    foreign = store(state, make_keys("umbrella", secret=5))
    assert not one.chunks.keys() & foreign.chunks.keys()
    assert not {name.rsplit("/")[-1] for name in one.chunks} & {name.rsplit("/")[-1] for name in foreign.chunks}


@settings(max_examples=100)
@given(DOCUMENTS, st.lists(CHANGES, max_size=4), st.sampled_from([1, 7, 1_000]))
def test_sharing_by_touched_cells_lists_the_chunks_of_a_full_pack(document: dict[str, Any], steps: list[Any], factor: int) -> None:
    document["l"] = [{"n": number, "t": f"{number}" * factor} for number in range(60)]
    with small_chunks():
        first = store(state_of(document), KEYS)
        touched_names: set[bytes] = set()
        for changes in [*steps, (Change("append", ("l",), "last"), Change("set", ("l", "17", "t"), "x"))]:
            before = shape(document, changes)
            document, _ = apply(document, changes)
            put, remove = touched(changes, before, document)
            touched_names |= put.keys() | remove
        shared = store(state_of(document, 8), KEYS, first, touched=touched_names)
        full = store(state_of(document, 8), KEYS)
        assert shared.manifest == full.manifest
        assert unpack(shared.manifest, shared.in_order(KEYS), keys=KEYS).document == document


@pytest.mark.parametrize("factor", [1, 20])
@pytest.mark.parametrize(("before", "after"), [(700, 1), (1, 700), (150, 1), (700, 150)])
def test_sharing_holds_where_a_cell_grows_or_shrinks_at_any_place(factor: int, before: int, after: int) -> None:
    with small_chunks():
        for place in range(40):
            document = {"l": [f"{number}" * factor for number in range(40)]}
            document["l"][place] = "x" * before
            first = store(state_of(document), KEYS)
            document["l"][place] = "x" * after
            shared = store(state_of(document, 8), KEYS, first, touched={b"e\0\1l" + place.to_bytes(4, "big")})
            assert shared.manifest == store(state_of(document, 8), KEYS).manifest


def test_threads_make_the_same_snapshot_and_end_with_it() -> None:
    state = state_of(conversation(3_000))
    with small_chunks():
        alone, together = store(state, KEYS), store(state, KEYS, threads=3)
        assert len(alone.chunks) > 50
        assert (alone.manifest, alone.chunks) == (together.manifest, together.chunks)
        broken_off = pack(state, keys=KEYS, created_us=1, threads=3)
        for _ in zip(range(20), broken_off.chunks, strict=False):
            pass
        broken_off.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("perdure-pack")]
