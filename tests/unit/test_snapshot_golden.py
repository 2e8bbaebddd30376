"""A snapshot that an earlier release wrote opens, and today's writer still makes the same chunks of the same state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import PerdureError
from perdure.snapshots.check import check_snapshot
from perdure.snapshots.chunks import open_chunk
from perdure.snapshots.codecs import CODECS
from perdure.snapshots.manifest import open_manifest
from perdure.snapshots.pack import unpack
from perdure.snapshots.zstd import BUILTIN_DICTIONARIES, builtin
from tests.unit.fix_snapshots import Stored, check_keys, conversation, make_keys, state_of, store

GOLDEN = Path(__file__).parent / "golden"
KEYS = make_keys()
STATE = state_of(conversation(60) | {"numbers": [0, -1, 2**63, -(2**63), 1.5, -0.0], "large": {"text": "long " * 13_200}, "raw": b"\0\xff"})


def written(codec: str) -> Stored:
    return store(STATE, KEYS, codec=codec, dictionary=builtin())


def save(codec: str) -> None:
    """Write a golden file; only ever for a new format."""
    stored = written(codec)
    (GOLDEN / f"snapshot-1-{codec}.msgpack").write_bytes(msgspec.msgpack.encode((stored.sealed, stored.in_order(KEYS))))


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_format_1_opens(codec: str) -> None:
    sealed, chunks = msgspec.msgpack.decode((GOLDEN / f"snapshot-1-{codec}.msgpack").read_bytes())
    manifest = open_manifest(sealed, keys=KEYS, tenant="acme", agent="one", version=7)
    assert unpack(manifest, chunks, keys=KEYS) == STATE
    today = written(codec)
    assert [chunk.digest for chunk in manifest.chunks] == [chunk.digest for chunk in today.manifest.chunks]
    assert [chunk.name for chunk in manifest.chunks] == [chunk.name for chunk in today.manifest.chunks]
    stored = dict(zip((KEYS.chunk_object(chunk.name) for chunk in manifest.chunks), chunks, strict=True))
    assert check_snapshot(sealed, 7, stored.get, check_keys()).problems == []


GOLDEN_SEALED, GOLDEN_CHUNKS = msgspec.msgpack.decode((GOLDEN / "snapshot-1-zstd.msgpack").read_bytes())


def mutated(original: bytes) -> st.SearchStrategy[bytes]:
    """Anything at all, or the original with a stretch replaced, repeated or removed."""
    place = st.integers(0, len(original))
    return st.binary(max_size=300) | st.builds(
        lambda start, end, middle: original[: min(start, end)] + middle + original[max(start, end) :], place, place, st.binary(max_size=40)
    )


@settings(max_examples=300)
@given(mutated(GOLDEN_SEALED))
def test_anything_in_place_of_a_manifest_is_a_typed_error(content: bytes) -> None:
    if content != GOLDEN_SEALED:
        with pytest.raises(PerdureError):
            open_manifest(content, keys=KEYS, tenant="acme", agent="one", version=7)
        assert check_snapshot(content, 7, dict[str, Any]().get, check_keys()).problems


@settings(max_examples=300)
@given(mutated(GOLDEN_CHUNKS[0]))
def test_anything_in_place_of_a_chunk_is_a_typed_error(content: bytes) -> None:
    manifest = open_manifest(GOLDEN_SEALED, keys=KEYS, tenant="acme", agent="one", version=7)
    if content != GOLDEN_CHUNKS[0]:
        with pytest.raises(PerdureError):
            open_chunk(content, manifest.chunks[0], keys=KEYS, dictionaries=BUILTIN_DICTIONARIES)
        found = check_snapshot(GOLDEN_SEALED, 7, {KEYS.chunk_object(manifest.chunks[0].name): content}.get, check_keys())
        assert found.problems[0].where == KEYS.chunk_object(manifest.chunks[0].name)
