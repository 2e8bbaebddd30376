"""A state read by way of a snapshot is the fold of the whole log, whatever happened to the snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import perdure
from perdure.client.engine import Engine
from perdure.engine.digest import digest
from perdure.engine.event import Event
from perdure.engine.importing.reader import read_conversations
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.errors import IntegrityError, KeyUnavailable, ObjectNotFound, Unavailable
from perdure.projections.memory import MemoryCache
from perdure.projections.reader import StateReader
from perdure.snapshots import loader as loader_module
from tests.fix_snapshot_engine import TENANT, Shelved
from tests.unit.fix_snapshots import small_chunks

NAME = AgentName(TENANT, "a")
EMBEDDED = pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
"""What has nothing to do with the log is tried on one of them."""
FILES = (
    "tau-bench/gpt-4o-airline.json",
    "swe-agent/traj/05-h-HumanEvalFix-python__lcb__t-0.00__p-0.95__c-4.00__install-0--humanevalfix-python-0.traj",
    "who-and-when/hand-crafted/1.json",
)
CONVERSATIONS_PER_FILE = 2
PROBES = 8


async def full(engine: Engine, name: AgentName, version: int) -> bytes:
    """The digest of the state at a version, from the log alone."""
    record = await engine.log.vault.record(*name)
    return digest((await fold_log(engine.log.store, engine.log.vault, record, to_version=version)).document)


def cold(engine: Engine) -> StateReader:
    """A reader that has nothing at hand but the snapshots and the log."""
    return StateReader(engine.log.store, MemoryCache(), engine.log.vault, base=engine.snapshots.base)


def edit(random: Random, number: int) -> Event:
    """What messages do not do: set, merge, delete, insert."""
    choices = [
        perdure.set_value("/status", random.choice(["busy", "idle", None, 1.0, number])),
        perdure.merge("/memory", {random.choice("abc"): random.choice([None, number, {"seen": [number]}])}),
        perdure.delete(f"/memory/{random.choice('abc')}"),
        perdure.insert("/messages/0", {"role": "system", "content": "🙂" * number}),
        perdure.delete("/messages/1"),
        perdure.delete("/status"),
    ]
    return Event("edited", changes=tuple(random.sample(choices, random.randint(1, 3))))


async def live(shelved: Shelved, trajectories: Path, random: Random) -> list[AgentName]:
    """Agents with real histories, edits among them, and snapshots and checkpoints made at random moments."""
    names = []
    for file in FILES:
        for conversation in islice(read_conversations(trajectories / file), CONVERSATIONS_PER_FILE):
            events = list(conversation.events)
            for number in range(len(events) // 4 + 1):
                events.insert(random.randint(1, len(events)), edit(random, number))
            name = AgentName(TENANT, conversation.agent)
            names.append(name)
            while events:
                count = random.randint(1, max(2, len(events) // 3))
                await shelved.engine.log.append_events(name, events[:count])
                events = events[count:]
                await maybe_snapshot(shelved, name, random)
    return names


async def maybe_snapshot(shelved: Shelved, name: AgentName, random: Random) -> None:
    chance = random.random()
    if chance < 0.5:
        await shelved.snapshots.create_snapshot(name, full=chance < 0.1, codec=random.choice(["zstd", "zstd", "lz4", "none"]))
    elif chance < 0.6:
        await shelved.snapshots.create_checkpoint(name, version=random.randint(1, await shelved.engine.log.version(name)))


@pytest.mark.parametrize(("shelved", "seed"), [("sqlite", 1), ("sqlite", 2), ("postgres", 3)], indirect=["shelved"])
async def test_every_state_from_snapshot_and_tail_is_the_full_fold(shelved: Shelved, trajectories: Path, seed: int) -> None:
    random = Random(seed)
    reader, loader = cold(shelved.engine), shelved.snapshots.shelf.loader
    with small_chunks():  # so that these states have many, and a change touches few of them
        names = await live(shelved, trajectories, random)
    assert len(names) > len(FILES)
    async for made in shelved.snapshots.all_snapshots(TENANT):
        assert (await shelved.snapshots.verify_snapshot(TENANT, made.id, replay=True)).ok
        assert made.chunks > 1 or made.plain_bytes < 1_000
    before = loader.status.loads
    for name in names:
        newest = await shelved.engine.log.version(name)
        for version in {0, 1, newest, *(random.randint(0, newest) for _ in range(PROBES))}:
            state = await reader.state_at_version(*name, version)
            assert state.version == version
            assert digest(state.document) == await full(shelved.engine, name, version)
        now = await cold(shelved.engine).state(*name)
        assert (now.version, digest(now.document)) == (newest, await full(shelved.engine, name, newest))
    assert loader.status.loads - before > len(names)
    assert loader.status.steps_down == 0


async def test_a_damaged_newest_snapshot_costs_a_step_and_is_marked(shelved: Shelved) -> None:
    made = []
    for number in range(3):
        await shelved.talk("a", 20, start=20 * number)
        made.append(await shelved.snapshot("a", full=True))
    await shelved.talk("a", 3, start=60)
    loader, store = shelved.snapshots.shelf.loader, shelved.engine.log.store
    for newest in (2, 1, 0):
        await shelved.damage(made[newest], which=0)
        state = await cold(shelved.engine).state(*NAME)
        assert (state.version, digest(state.document)) == (63, await full(shelved.engine, NAME, 63))
        assert "registered" in (await shelved.row(made[newest])).damage
        assert loader.status.damaged == 3 - newest
    assert "version 20" in loader.status.problem
    # All are damaged: nothing is read from the store any more.
    misses = loader.status.misses
    assert (await cold(shelved.engine).state(*NAME)).version == 63
    assert (loader.status.misses, loader.status.damaged) == (misses + 1, 3)
    again = await shelved.snapshot("a")
    assert again.kind == "full"
    assert await store.newest_snapshots([await shelved.engine.log.vault.record(*NAME)]) == [await shelved.row(again)]


@EMBEDDED
@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "empty", "gone", "swapped"])
async def test_whatever_happens_to_an_object_the_state_is_right(shelved: Shelved, which: int, how: str) -> None:
    await shelved.talk("a", 300, padding="x" * 400)
    await shelved.talk("b", 300, padding="y" * 400)
    other = await shelved.snapshot("b")
    made = await shelved.snapshot("a")
    assert made.chunks >= 2
    file, strange = (await shelved.objects(made))[which], (await shelved.objects(other))[which]
    content = file.read_bytes()
    file.unlink()
    changed = {"flipped": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-1], "longer": content + b"x", "empty": b""}
    if how != "gone":
        file.write_bytes(strange.read_bytes() if how == "swapped" else changed[how])
    with pytest.raises((IntegrityError, ObjectNotFound)) as caught:
        await shelved.snapshots.restore_snapshot(NAME, snapshot=made.id)
    assert (caught.value.tenant, caught.value.agent, caught.value.version) == (TENANT, "a", 300)
    assert (await shelved.snapshots.get_snapshot(TENANT, made.id)).damage
    state = await cold(shelved.engine).state(*NAME)
    assert digest(state.document) == await full(shelved.engine, NAME, 300)


@EMBEDDED
async def test_an_older_snapshot_put_in_the_newest_ones_place_is_refused(shelved: Shelved) -> None:
    await shelved.talk("a", 5)
    older = await shelved.snapshot("a")
    await shelved.talk("a", 5, start=5)
    newer = await shelved.snapshot("a")
    replayed = (await shelved.objects(older))[0].read_bytes()
    (await shelved.objects(newer))[0].write_bytes(replayed)
    state = await cold(shelved.engine).state(*NAME)
    assert (state.version, digest(state.document)) == (10, await full(shelved.engine, NAME, 10))
    assert (await shelved.row(newer)).damage
    assert not (await shelved.row(older)).damage


@EMBEDDED
async def test_a_row_of_another_history_is_stepped_over_and_not_marked(shelved: Shelved) -> None:
    """Which of the two was changed only a verification can tell."""
    await shelved.talk("a", 5)
    right = await shelved.row(await shelved.snapshot("a"))
    await shelved.talk("a", 5, start=5)
    wrong = msgspec.structs.replace(right, id=perdure.Event("x").id, version=8)
    assert await shelved.engine.log.store.add_snapshot(wrong) is None
    state = await cold(shelved.engine).state(*NAME)
    assert digest(state.document) == await full(shelved.engine, NAME, 10)
    assert "different histories" in shelved.snapshots.shelf.loader.status.problem
    assert await shelved.engine.log.store.get_snapshot(TENANT, wrong.id) == wrong


class Away:
    """A store that does not answer."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "close":
            return self.inner.close
        raise Unavailable("the store does not answer")


@pytest.fixture
async def away(shelved: Shelved) -> AsyncIterator[Shelved]:
    """A `Shelved` with 10 events of agent `a`, a snapshot at 5, and a store that does not answer any more."""
    await shelved.talk("a", 5)
    await shelved.snapshot("a")
    await shelved.talk("a", 5, start=5)
    contents = shelved.snapshots.shelf.contents
    inner, contents.objects = contents.objects, Away(contents.objects)
    yield shelved
    contents.objects = inner


@EMBEDDED
async def test_with_the_store_away_reads_go_on_and_snapshots_are_unavailable(away: Shelved) -> None:
    state = await cold(away.engine).state(*NAME)
    assert digest(state.document) == await full(away.engine, NAME, 10)
    with pytest.raises(Unavailable):
        await away.snapshots.create_snapshot(NAME)
    listed = await away.snapshots.list_snapshots(NAME)
    assert [(each.version, each.damage) for each in listed] == [(5, "")]
    with pytest.raises(Unavailable):
        await away.snapshots.verify_snapshot(TENANT, listed[0].id)
    assert (await away.snapshots.get_snapshot(TENANT, listed[0].id)).damage == ""
    restored = await away.snapshots.restore_snapshot(NAME, version=7)
    assert (restored.version, restored.snapshot) == (7, None)
    assert any("not answer" in warning for warning in restored.warnings)


@EMBEDDED
async def test_a_destroyed_key_is_a_typed_error_and_other_agents_go_on(shelved: Shelved) -> None:
    await shelved.talk("a", 5)
    await shelved.talk("b", 5)
    made, other = await shelved.snapshot("a"), await shelved.snapshot("b")
    await shelved.talk("a", 1, start=5)
    vault = shelved.engine.log.vault
    right = vault.cipher

    async def destroyed(tenant: str, agent: str) -> Any:
        if agent == "a":
            raise KeyUnavailable("the agent's key was destroyed", tenant=tenant, agent=agent)
        return await right(tenant, agent)

    vault.cipher = destroyed
    try:
        for attempt in (
            shelved.snapshots.create_snapshot(NAME),
            shelved.snapshots.verify_snapshot(TENANT, made.id),
            shelved.snapshots.restore_snapshot(NAME, snapshot=made.id),
        ):
            with pytest.raises(KeyUnavailable):
                await attempt
        assert (await shelved.snapshots.verify_snapshot(TENANT, other.id)).ok
        assert (await shelved.row(made)).damage == ""
        assert await shelved.snapshots.shelf.loader.load(await vault.record(*NAME)) is None
    finally:
        vault.cipher = right


@EMBEDDED
async def test_reads_that_are_given_up_leave_nothing_running(shelved: Shelved) -> None:
    await shelved.talk("a", 2_000, padding="z" * 500)
    made = await shelved.snapshot("a")
    row = await shelved.row(made)
    contents = shelved.snapshots.shelf.contents
    for delay_s in (0.0, 0.001, 0.004, 0.01, 0.02):
        reading = asyncio.create_task(contents.read(row))
        await asyncio.wait((reading,), timeout=delay_s)
        reading.cancel()
        await asyncio.wait((reading,))
    assert len((await contents.read(row)).folded.document["messages"]) == 2_000


@EMBEDDED
@pytest.mark.parametrize("padding", ["", "x" * 2_000])
async def test_what_reads_wrongly_once_is_not_taken_for_damage(shelved: Shelved, monkeypatch: pytest.MonkeyPatch, padding: str) -> None:
    await shelved.talk("a", 60, padding=padding)
    made = await shelved.snapshot("a")
    objects = shelved.snapshots.shelf.contents.objects
    get = objects.get
    for wrong_read in (1, 2, 3):
        reads = 0

        async def flaky(name: str, *, bytes_max: int) -> bytes:
            nonlocal reads
            reads += 1
            content = bytearray(await get(name, bytes_max=bytes_max))
            content[-1] ^= reads == wrong_read  # noqa: B023
            return bytes(content)

        monkeypatch.setattr(objects, "get", flaky)
        assert digest((await cold(shelved.engine).state(*NAME)).document) == await full(shelved.engine, NAME, 60)
    assert (await shelved.row(made)).damage == ""
    assert shelved.snapshots.shelf.loader.status.steps_down == 0


@EMBEDDED
async def test_another_tenants_or_agents_snapshot_under_a_forged_row_is_refused(shelved: Shelved) -> None:
    """Somebody who can write to the database, but has no key, points an agent at somebody else's objects, chain and digest included."""
    log = shelved.engine.log
    own, strangers = AgentName(TENANT, "a"), [AgentName("other", "a"), AgentName(TENANT, "b")]
    for name in (own, *strangers):
        events = [Event("noted", changes=(perdure.append("/notes", f"{name} {number}"),)) for number in range(6)]
        await log.append_events(name, events)
    record = await log.vault.record(*own)
    (event,) = [event async for event in log.stream_events(own) if event.version == 5]
    for name in strangers:
        made = (await shelved.snapshots.create_checkpoint(name, version=5)).snapshot
        stolen = await log.store.get_snapshot(name.tenant, made.id)
        assert stolen is not None
        place = {"tenant": own.tenant, "agent": own.agent, "tenant_key": record.tenant_key, "agent_key": record.agent_key}
        forged = msgspec.structs.replace(stolen, id=Event("x").id, chain=event.chain, **place)
        assert await log.store.add_snapshot(forged) is None
        with pytest.raises(IntegrityError):
            await shelved.snapshots.restore_snapshot(own, snapshot=forged.id)
        assert "authentication" in (await shelved.snapshots.get_snapshot(TENANT, forged.id)).damage
        state = await cold(shelved.engine).state(*own)
        assert state.document["notes"][0] == f"{own} 0"
        assert (await shelved.snapshots.verify_snapshot(name.tenant, made.id)).ok


class Stuck:
    """A store whose answers never come."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.asked = 0

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError(name, bytes_max)

    async def close(self) -> None:
        await self.inner.close()


@EMBEDDED
async def test_a_store_that_does_not_answer_is_waited_for_once(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    await shelved.talk("a", 5)
    await shelved.snapshot("a")
    await shelved.talk("a", 5, start=5)
    monkeypatch.setattr(loader_module, "ANSWER_S", 0.05)
    contents = shelved.snapshots.shelf.contents
    stuck = contents.objects = Stuck(contents.objects)
    for _ in range(3):
        state = await cold(shelved.engine).state(*NAME)
        assert digest(state.document) == await full(shelved.engine, NAME, 10)
    assert stuck.asked == 1
    # After a while it is asked again, and serves.
    monkeypatch.setattr(shelved.snapshots.shelf.loader, "_away_until_s", 0.0)
    contents.objects = stuck.inner
    loads = shelved.snapshots.shelf.loader.status.loads
    await cold(shelved.engine).state(*NAME)
    assert shelved.snapshots.shelf.loader.status.loads == loads + 1
    assert (await shelved.snapshots.list_snapshots(NAME))[0].damage == ""


@EMBEDDED
async def test_where_the_log_was_compacted_the_reason_is_told(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else has the state, so a store that is away is waited for, and what is damaged is damage."""
    for number in range(4):
        await shelved.talk("a", 10, start=10 * number)
        await shelved.snapshot("a", full=True)
    await shelved.engine.upkeep.compact_events(NAME, keep_last=5)
    assert (await cold(shelved.engine).state(*NAME)).version == 40
    monkeypatch.setattr(loader_module, "ANSWER_S", 0.05)
    contents = shelved.snapshots.shelf.contents
    stuck = contents.objects = Stuck(contents.objects)
    for asked in (1, 2):
        with pytest.raises(Unavailable):
            await cold(shelved.engine).state(*NAME)
        assert stuck.asked == asked
    with pytest.raises(Unavailable):
        await shelved.snapshots.restore_snapshot(NAME)
    contents.objects = stuck.inner
    for file in (path for path in shelved.folder.rglob("manifests/*/*/*") if path.is_file()):
        file.write_bytes(b"")
    with pytest.raises(IntegrityError):
        await cold(shelved.engine).state(*NAME)


@EMBEDDED
async def test_a_queue_of_our_own_is_no_store_that_is_away(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    await shelved.talk("a", 20)
    await shelved.snapshot("a")
    loader, objects = shelved.snapshots.shelf.loader, shelved.snapshots.shelf.contents.objects
    get, loop = objects.get, asyncio.get_running_loop()

    async def slow(name: str, *, bytes_max: int) -> bytes:
        answered = asyncio.Event()
        loop.call_later(0.1, answered.set)
        await answered.wait()
        return bytes(await get(name, bytes_max=bytes_max))

    monkeypatch.setattr(objects, "get", slow)
    monkeypatch.setattr(loader, "_places", asyncio.Semaphore(1))
    monkeypatch.setattr(loader_module, "ANSWER_S", 1.0)
    record = await shelved.engine.log.vault.record(*NAME)
    loaded = await asyncio.gather(*(loader.load(record) for _ in range(8)))
    assert all(each is not None and each.folded.version == 20 for each in loaded)
    assert loader.status.steps_down == 0
