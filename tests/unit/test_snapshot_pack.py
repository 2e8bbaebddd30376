"""Packing and unpacking: what comes out is what went in, and little is made twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.engine.cells import split
from perdure.engine.digest import digest
from perdure.snapshots.cells import StateBuilder, ordered_cells
from perdure.snapshots.codecs import CODECS
from perdure.snapshots.manifest import open_manifest
from perdure.snapshots.pack import unpack
from tests.unit.fix_snapshots import conversation, make_keys, state_of, store
from tests.unit.strategies import DOCUMENTS

KEYS = make_keys()


@given(DOCUMENTS)
def test_cells_come_in_the_order_of_their_names(document: dict[str, Any]) -> None:
    cells = list(ordered_cells(document))
    assert [name for name, _ in cells] == sorted(split(document))
    assert dict(cells) == split(document)
    builder = StateBuilder()
    builder.add((name for name, _ in cells), (value for _, value in cells))
    assert digest(builder.document()) == digest(document)


@settings(max_examples=60)
@given(DOCUMENTS, st.sampled_from(sorted(CODECS)))
def test_a_state_survives_packing(document: dict[str, Any], codec: str) -> None:
    stored = store(state_of(document), KEYS, codec=codec)
    manifest = open_manifest(stored.sealed, keys=KEYS, tenant="acme", agent="one", version=7)
    assert manifest == stored.manifest
    assert manifest.state_digest == digest(document)
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
