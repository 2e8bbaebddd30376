"""The conformance kit of snapshot stores: what every `SnapshotStore` must do. A backend's test file is this kit plus its own failures::

    @pytest.mark.parametrize("case", [*STORE_CASES, *PROCESS_CASES], ids=name_of)
    async def test_store(case, tmp_path):
        await case(StoreUnderTest(partial(LocalStore, tmp_path)))

The opener gives the store once more each time, as another process would; it must survive pickling. Each case needs an empty store.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from perdure import limits
from perdure.errors import InvalidInput, LimitExceeded, ObjectNotFound
from perdure.snapshots.store.contract import SnapshotStore
from perdure.testing.store_processes import count_creations, put_until_killed, raise_unless

__all__ = ["PROCESS_CASES", "STORE_CASES", "Case", "StoreUnderTest", "name_of"]

BIG_BYTES = 24 * limits.MIB
BAD_NAMES = (
    *("", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "./a", "a/./b", ".hidden", "a/.partial", "A", "a b", "a\\b", "ä"),
    *("a\0b", "a\n", "%2e%2e/a", "a?b", "a#b", "~/a", "c:/a", "a" * (limits.STORE_NAME_LENGTH_MAX + 1)),
)
MANY = limits.STORE_LIST_PAGE_OBJECTS + 50


class StoreUnderTest:
    """opener: opens the store that a case works on."""

    def __init__(self, opener: Callable[[], SnapshotStore]) -> None:
        self.opener = opener

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SnapshotStore]:
        """The store, closed at the end."""
        store = self.opener()
        try:
            yield store
        finally:
            await store.close()


Case = Callable[[StoreUnderTest], Awaitable[None]]


def name_of(case: Case) -> str:
    """What a case claims, as the id of a test."""
    return getattr(case, "__name__", repr(case))


async def what_is_put_is_read_back_by_another_opener(store: StoreUnderTest) -> None:
    """Empty, small, with every byte in it, and larger than any buffer in between."""
    contents = {
        "empty": b"",
        "one": b"\0",
        "every/byte": bytes(range(256)) * 3,
        "deep/down/in/a/f-o_l.der": b"x",
        "big": os.urandom(BIG_BYTES),
    }
    async with store.open() as first:
        for name, content in contents.items():
            assert await first.put(name, content) is True
            assert await first.get(name, bytes_max=len(content)) == content
    async with store.open() as second:
        for name, content in contents.items():
            assert await second.get(name, bytes_max=len(content)) == content
            facts = await second.facts(name)
            assert facts is not None
            assert (facts.name, facts.size_bytes) == (name, len(content))
            assert facts.modified_us > 1_600_000_000_000_000


async def a_name_keeps_its_first_content(store: StoreUnderTest) -> None:
    """Also against the same content, an empty one and a longer one, and also when the first one was empty."""
    async with store.open() as opened:
        for name, first in (("a/name", b"first"), ("empty", b"")):
            assert await opened.put(name, first) is True
            for other in (first, b"", b"another and longer one"):
                assert await opened.put(name, other) is False
            assert await opened.get(name, bytes_max=100) == first


async def of_puts_at_once_one_wins(store: StoreUnderTest) -> None:
    """Callers of one process."""
    async with store.open() as opened:
        contents = [bytes([number]) * 100_000 for number in range(12)]
        created = await asyncio.gather(*(opened.put("race", content) for content in contents))
        assert created.count(True) == 1
        assert await opened.get("race", bytes_max=100_000) == contents[created.index(True)]


async def what_is_absent_is_typed(store: StoreUnderTest) -> None:
    """In an empty store, beside others, and below an object's name."""
    async with store.open() as opened:
        for _ in range(2):
            for name in ("nothing", "no/such/object", "there/object/below"):
                await raise_unless(ObjectNotFound, opened.get(name, bytes_max=10))
                assert await opened.facts(name) is None
                await opened.delete(name)
            assert await _names(opened.list("no/such/")) == []
            await opened.put("there/object", b"content")
        assert await opened.get("there/object", bytes_max=10) == b"content"


async def what_is_deleted_is_gone_and_may_come_again(store: StoreUnderTest) -> None:
    """A second delete is no error, the neighbours stay."""
    async with store.open() as opened:
        for name in ("a/1", "a/2"):
            await opened.put(name, b"old")
        await opened.delete("a/1")
        await opened.delete("a/1")
        await raise_unless(ObjectNotFound, opened.get("a/1", bytes_max=10))
        assert await _names(opened.list("")) == ["a/2"]
        assert await opened.put("a/1", b"new") is True
        assert await opened.get("a/1", bytes_max=10) == b"new"


async def names_from_outside_are_refused(store: StoreUnderTest) -> None:
    """Nothing path-like gets anywhere, and nothing is left behind by the attempt."""
    async with store.open() as opened:
        await opened.put("a/b", b"content")
        for name in BAD_NAMES:
            await raise_unless(InvalidInput, opened.put(name, b"bad"))
            await raise_unless(InvalidInput, opened.get(name, bytes_max=10))
            await raise_unless(InvalidInput, opened.facts(name))
            await raise_unless(InvalidInput, opened.delete(name))
        for prefix in ("a", "/", "../", "a/../", "A/", ".partial/"):
            await raise_unless(InvalidInput, _names(opened.list(prefix)))
        assert await _names(opened.list("")) == ["a/b"]


async def contents_above_a_limit_are_refused(store: StoreUnderTest) -> None:
    """On the way in by the store's own limit, on the way out by the reader's."""
    async with store.open() as opened:
        await opened.put("ten", b"0123456789")
        for bytes_max in (0, 9):
            await raise_unless(LimitExceeded, opened.get("ten", bytes_max=bytes_max))
        await raise_unless(LimitExceeded, opened.put("huge", bytes(limits.STORE_OBJECT_BYTES_MAX + 1)))
        assert await opened.facts("huge") is None


async def lists_are_in_order_of_names(store: StoreUnderTest) -> None:
    """By whole names, byte by byte: a folder is no level of the order, and no prefix of a name that only begins like it."""
    names = ["a-b", "a.b", "a/b", "a/b-c", "a/c/d", "a/c0", "a0", "a_b", "ab/c", "b"]
    async with store.open() as opened:
        for name in reversed(names):
            await opened.put(name, name.encode())
        assert names == sorted(names)
        found = [facts async for facts in opened.list("")]
        assert [(facts.name, facts.size_bytes) for facts in found] == [(name, len(name)) for name in names]
        assert await _names(opened.list("a/")) == ["a/b", "a/b-c", "a/c/d", "a/c0"]
        assert await _names(opened.list("a/c/")) == ["a/c/d"]
        for after in ["", "a", "a/", "a/b-", "a/c/", "a/c/z", "z", *names]:
            assert await _names(opened.list("", after=after)) == [name for name in names if name > after]
            assert await _names(opened.list("a/", after=after)) == [name for name in names if name > after and name.startswith("a/")]


async def long_lists_come_page_by_page(store: StoreUnderTest) -> None:
    """More objects than a page holds, while others are put and deleted."""
    names = [f"chunks/{number % 16:02x}/{number:06d}" for number in range(MANY)]
    async with store.open() as opened:
        await _put_all(opened, names)
        found: list[str] = []
        async for facts in opened.list("chunks/"):
            if len(found) == 10:
                await opened.put("chunks/0f/999999", b"late")
                await opened.put("chunks/00/000000-early", b"")
                await opened.delete(names[15])
            found.append(facts.name)
        steady = set(names) - {names[15]}
        assert found == sorted(set(found))
        assert steady <= set(found)


async def closing_twice_is_no_error(store: StoreUnderTest) -> None:
    """Used or not."""
    for used in (False, True):
        async with store.open() as opened:
            if used:
                await opened.put("a", b"")
            await opened.close()


async def of_processes_that_put_one_name_one_wins(store: StoreUnderTest) -> None:
    """Each process puts the same names with contents of its own, while another one reads: it sees one whole content, for ever the same."""
    names = [f"race/{number}" for number in range(25)]
    claimed = await count_creations(store.opener, names, content_bytes=200_000)
    async with store.open() as opened:
        assert await _names(opened.list("")) == sorted(names)
        for name in names:
            winners = claimed[name]
            assert len(winners) == 1, f"{name} was made by {winners}"
            assert await opened.get(name, bytes_max=200_000) == bytes(winners) * 200_000


async def what_was_acknowledged_survives_kill_9(store: StoreUnderTest) -> None:
    """A process is killed in the middle of many puts: what it had been told to be there is, and whatever is there is whole."""
    acknowledged = await put_until_killed(store.opener, acknowledged_min=40)
    async with store.open() as opened:
        found = await _names(opened.list(""))
        assert set(acknowledged) <= set(found)
        for name in found:
            content = await opened.get(name, bytes_max=limits.MIB)
            assert name == f"put/{hashlib.sha256(content).hexdigest()}"
        assert await opened.put("after", b"the store goes on") is True


STORE_CASES: tuple[Case, ...] = (
    what_is_put_is_read_back_by_another_opener,
    a_name_keeps_its_first_content,
    of_puts_at_once_one_wins,
    what_is_absent_is_typed,
    what_is_deleted_is_gone_and_may_come_again,
    names_from_outside_are_refused,
    contents_above_a_limit_are_refused,
    lists_are_in_order_of_names,
    long_lists_come_page_by_page,
    closing_twice_is_no_error,
)
"""Of a store alone."""

PROCESS_CASES: tuple[Case, ...] = (of_processes_that_put_one_name_one_wins, what_was_acknowledged_survives_kill_9)
"""Of a store that several processes use."""


async def _names(listed: AsyncIterator[object]) -> list[str]:
    return [facts.name async for facts in listed]  # type: ignore[attr-defined]


async def _put_all(store: SnapshotStore, names: Iterable[str]) -> None:
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:
            await store.put(name, name.encode())

    await asyncio.gather(*(work() for _ in range(limits.STORE_THREADS)))
