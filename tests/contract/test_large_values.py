"""Values above the inline limit stand outside of the log's rows, once, and come back as they were."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure
from perdure.client.engine import Engine
from perdure.engine import blobs
from perdure.engine.log.records import EventFilter
from perdure.errors import IntegrityError, LimitExceeded
from perdure.limits import INLINE_BYTES_MAX

LARGE = "long text " * 50_000


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    url = f"sqlite:///{tmp_path}/state" if request.param == "sqlite" else request.getfixturevalue("fresh_database")
    async with perdure.open(url, keys=f"file://{tmp_path}/keys/root.key", bus="memory://", cache="memory://") as engine:
        yield engine


async def test_a_large_value_comes_back_and_its_row_stays_small(engine: Engine) -> None:
    agent = engine.agent("a")
    document = {"text": LARGE, "small": 1, "parts": [LARGE, "x"], "bytes": b"\0" * 200_000}
    await agent.append(perdure.Event("loaded", changes=(perdure.set_value("/document", document),), data={"log": LARGE}))
    (event,) = await engine.log.get_events(agent.name)
    assert event.changes[0].value == document
    assert event.data == {"log": LARGE}
    assert (await agent.state()).document == {"document": document}
    (row,) = await engine.log.store.read_agent(await engine.log.vault.record(*agent.name), EventFilter(), 1)
    assert len(row.payload) < 2_000


async def test_the_same_value_is_kept_once_within_a_tenant_and_apart_between_tenants(engine: Engine) -> None:
    kept: list[tuple[str, bytes]] = []
    put = engine.log.store.put_blob

    async def noted(tenant: str, name: bytes, payload: bytes) -> None:
        kept.append((tenant, name))
        await put(tenant, name, payload)

    engine.log.store.put_blob = noted  # type: ignore[method-assign]
    for tenant in ("one", "one", "two"):
        await engine.agent("a", tenant=tenant).append(perdure.Event("loaded", changes=(perdure.append("/texts", LARGE),)))
    assert len(kept) == 3
    assert len(set(kept)) == 2
    assert len({name for _, name in kept}) == 2
    assert (await engine.agent("a", tenant="one").state()).document == {"texts": [LARGE, LARGE]}


async def test_a_large_value_that_is_gone_is_named_not_guessed(engine: Engine) -> None:
    agent = engine.agent("a")
    await agent.append(perdure.Event("loaded", changes=(perdure.set_value("/text", LARGE),)))

    async def gone(_tenant: str, _name: bytes) -> None:
        return None

    engine.log.store.get_blob = gone  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="large value") as caught:
        await engine.log.get_events(agent.name)
    assert (caught.value.agent, caught.value.version) == ("a", 1)


async def test_too_many_small_changes_are_refused_before_anything_is_stored(engine: Engine) -> None:
    changes = tuple(perdure.append("/texts", "x" * 60_000) for _ in range(100))
    with pytest.raises(LimitExceeded, match="the limit is"):
        await engine.agent("a").append(perdure.Event("loaded", changes=changes))
    assert await engine.tenants() == []


@settings(max_examples=25, deadline=None)
@given(st.recursive(st.text(max_size=5), lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=3), part, max_size=4)))
async def test_what_is_taken_out_is_put_back(value: object) -> None:
    whole = {"value": value, "large": ["y" * (INLINE_BYTES_MAX + 1), value], "many": [value, *range(INLINE_BYTES_MAX)]}
    kept: dict[bytes, bytes] = {}

    def keep(encoded: bytes) -> bytes:
        name = len(kept).to_bytes(32, "big")
        kept[name] = encoded
        return name

    async def fetch(reference: blobs.Reference) -> bytes:
        assert len(kept[reference.name]) == reference.size_bytes
        return kept[reference.name]

    lighter, count = blobs.take_out(whole, keep)
    assert count == 2
    assert len(blobs.encode(lighter)) < INLINE_BYTES_MAX
    assert await blobs.put_back(lighter, fetch) == whole
