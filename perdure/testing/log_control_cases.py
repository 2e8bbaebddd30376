"""Store cases: control documents, blobs and leases. Each is a plain async function on a new log."""

from __future__ import annotations

import asyncio

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName, Document, Lease
from perdure.testing.log_rows import LogUnderTest, agent_of

__all__ = ["CASES"]


async def documents_are_compared_and_set(log: LogUnderTest) -> None:
    """Only the expected revision is replaced; 0 means none; None means whichever."""
    store = await log.open()
    assert await store.get_document("s", "n") is None
    assert await store.put_document("s", "n", b"x", expected=1) is None
    assert await store.put_document("s", "n", b"1", expected=0) == Document("s", "n", 1, b"1")
    assert await store.put_document("s", "n", b"other", expected=0) is None
    assert await store.put_document("s", "n", b"2", expected=1) == Document("s", "n", 2, b"2")
    assert await store.put_document("s", "n", b"", expected=None) == Document("s", "n", 3, b"")
    assert await store.get_document("s", "n") == Document("s", "n", 3, b"")


async def one_of_many_sets_wins(log: LogUnderTest) -> None:
    """Concurrent compare-and-sets of two openings: each revision is given once."""
    stores = [await log.open(), await log.open()]
    for revision in range(3):
        puts = [stores[n % 2].put_document("s", "n", bytes([n]), expected=revision) for n in range(6)]
        assert len([done for done in await asyncio.gather(*puts) if done is not None]) == 1


async def of_many_equal_sets_one_wins(log: LogUnderTest) -> None:
    """Sets that go to the server together are still one each: of those that say the same only one is told that it was first."""
    stores = [await log.open(), await log.open()]
    for revision in range(3):
        puts = [stores[n % 2].put_document("s", name, b"same", expected=revision) for name in ("n", "m") for n in range(6)]
        done = [document.name for document in await asyncio.gather(*puts) if document is not None]
        assert sorted(done) == ["m", "n"]
    names = [f"n{number}" for number in range(40)]
    forth, back = (
        [store.put_document("s", name, b"", expected=0) for name in order]
        for store, order in zip(stores, (names, names[::-1]), strict=True)
    )
    assert len([document for document in await asyncio.gather(*forth, *back) if document is not None]) == len(names)
    assert [document is not None for document in await asyncio.gather(*(stores[0].get_document("s", name) for name in names))] == [
        True
    ] * 40


async def documents_are_listed_and_deleted_by_scope(log: LogUnderTest) -> None:
    """A scope's documents in order of name; deleting what is not there is no error."""
    store = await log.open()
    for scope, name in (("s", "b"), ("s", "a"), ("s2", "a")):
        await store.put_document(scope, name, name.encode(), expected=None)
    assert await store.list_documents("s") == [Document("s", "a", 1, b"a"), Document("s", "b", 1, b"b")]
    await store.delete_document("s", "a")
    await store.delete_document("s", "a")
    assert [document.name for document in await store.list_documents("s")] == ["b"]
    assert [document.name for document in await store.list_documents("s2")] == ["a"]
    assert await store.list_documents("nowhere") == []


async def blobs_are_kept_once_and_by_tenant(log: LogUnderTest) -> None:
    """The first bytes under a name stay; another tenant's same name is another blob."""
    store = await log.open()
    large = bytes(range(256)) * 8192
    await store.put_blob("t", b"\x00name", large)
    await asyncio.gather(*(store.put_blob("t", b"\x00name", b"again") for _ in range(3)))
    assert await store.get_blob("t", b"\x00name") == large
    assert await store.get_blob("other", b"\x00name") is None
    assert await store.get_blob("t", b"name") is None


async def a_lease_has_one_holder(log: LogUnderTest) -> None:
    """Others are refused while it runs; the holder renews within the same epoch."""
    stores = [await log.open(), await log.open()]
    first = await stores[0].acquire_lease("relay/3", "a", 30.0)
    assert first == Lease("relay/3", "a", 1, 30.0)
    assert await stores[1].acquire_lease("relay/3", "b", 30.0) is None
    assert await stores[1].acquire_lease("relay/4", "b", 30.0) == Lease("relay/4", "b", 1, 30.0)
    assert await stores[0].acquire_lease("relay/3", "a", 30.0) == first


async def one_of_many_takers_gets_a_lease(log: LogUnderTest) -> None:
    """Concurrent takers on two openings: exactly one holds it."""
    stores = [await log.open(), await log.open()]
    leases = await asyncio.gather(*(stores[n % 2].acquire_lease("x", f"holder-{n}", 30.0) for n in range(8)))
    assert len([lease for lease in leases if lease is not None]) == 1


async def a_lease_given_back_goes_to_the_next(log: LogUnderTest) -> None:
    """With a greater epoch; a release by whoever is no longer the holder changes nothing."""
    store = await log.open()
    first = await store.acquire_lease("x", "a", 30.0)
    assert first is not None
    await store.release_lease(first)
    second = await store.acquire_lease("x", "b", 30.0)
    assert second is not None
    assert second.epoch > first.epoch
    await store.release_lease(first)
    await store.release_lease(second._replace(epoch=first.epoch))
    assert await store.acquire_lease("x", "a", 30.0) is None


async def a_lease_that_ran_out_goes_to_the_next(log: LogUnderTest) -> None:
    """Nobody needs to give it back; the same holder, too, gets a greater epoch after it ran out."""
    store = await log.open()
    first = await store.acquire_lease("x", "a", 0.05)
    assert first is not None
    second = await _acquire_in_time(store, "x", "b")
    assert second.epoch > first.epoch
    third = await _acquire_in_time(store, "x", "c")
    assert third.epoch > second.epoch


async def _acquire_in_time(store: LogStore, name: str, holder: str) -> Lease:
    async with asyncio.timeout(60.0):
        while True:
            lease = await store.acquire_lease(name, holder, 0.05)
            if lease is not None:
                return lease


async def leases_that_run_are_listed(log: LogUnderTest) -> None:
    """By prefix, taken literally; what was given back is left out; the time that is left is told."""
    store = await log.open()
    for name in ("relay/1", "relay/2", "relay_1", "host/%"):
        assert await store.acquire_lease(name, "a", 30.0) is not None
    gone = await store.acquire_lease("relay/3", "a", 30.0)
    assert gone is not None
    await store.release_lease(gone)
    listed = await store.list_leases("relay/")
    assert sorted(lease.name for lease in listed) == ["relay/1", "relay/2"]
    assert all(0 < lease.expires_in_s <= 30.0 for lease in listed)
    assert [lease.name for lease in await store.list_leases("relay_")] == ["relay_1"]
    assert len(await store.list_leases("")) == 4


async def data_keys_are_swapped_where_they_still_are(log: LogUnderTest) -> None:
    """Of two who swap at once one does; a row that has another key already is left alone; nothing else of the row changes."""
    stores = [await log.open(), await log.open()]
    records = [await agent_of(stores[0], f"agent {number}") for number in range(20)]
    assert await stores[0].swap_data_keys([], []) == 0
    swaps = [store.swap_data_keys(records, [bytes([number]) * 74] * 20) for number, store in enumerate(stores, 1)]
    assert sum(await asyncio.gather(*swaps)) == 20
    found = [record for record in await stores[0].agents([AgentName(r.tenant, r.agent) for r in records]) if record is not None]
    assert {record.data_key for record in found} <= {bytes([1]) * 74, bytes([2]) * 74}
    assert [msgspec.structs.replace(record, data_key=b"") for record in found] == [
        msgspec.structs.replace(record, data_key=b"") for record in records
    ]
    assert await stores[1].swap_data_keys([records[0], found[1]], [b"x", b"y"]) == 1
    assert [record and record.data_key for record in await stores[0].agents([AgentName(r.tenant, r.agent) for r in records[:2]])] == [
        found[0].data_key,
        b"y",
    ]


CASES = (
    documents_are_compared_and_set,
    one_of_many_sets_wins,
    of_many_equal_sets_one_wins,
    documents_are_listed_and_deleted_by_scope,
    blobs_are_kept_once_and_by_tenant,
    a_lease_has_one_holder,
    one_of_many_takers_gets_a_lease,
    a_lease_given_back_goes_to_the_next,
    a_lease_that_ran_out_goes_to_the_next,
    leases_that_run_are_listed,
    data_keys_are_swapped_where_they_still_are,
)
