"""The store kit on local files, and what can go wrong with files."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError, InvalidInput, ObjectNotFound, Unavailable
from perdure.snapshots.store import open_store, syncing
from perdure.snapshots.store.local import LocalStore
from perdure.testing.store_kit import PROCESS_CASES, STORE_CASES, Case, StoreUnderTest, name_of


@pytest.mark.parametrize("case", [*STORE_CASES, *PROCESS_CASES], ids=name_of)
async def test_local_files(case: Case, tmp_path: Path) -> None:
    await case(StoreUnderTest(partial(LocalStore, tmp_path / "made at first use" / "store")))


@pytest.mark.parametrize("case", STORE_CASES, ids=name_of)
async def test_local_files_with_limits_and_meter(case: Case, tmp_path: Path) -> None:
    await case(StoreUnderTest(partial(open_store, f"file://{tmp_path}/a%20store")))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    opened = LocalStore(tmp_path / "store")
    yield opened
    await opened.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def names(store: LocalStore) -> list[str]:
    return [facts.name async for facts in store.list("")]


def left_behind(root: Path) -> list[str]:
    return sorted(os.listdir(root / ".partial"))


async def test_files_and_folders_are_for_their_owner_only(store: LocalStore, root: Path) -> None:
    before = os.umask(0)
    try:
        await store.put("a/b/c", b"content")
    finally:
        os.umask(before)
    modes = {path.relative_to(root).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert modes == {".partial": 0o700, "a": 0o700, "a/b": 0o700, "a/b/c": 0o600}
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


async def test_nothing_is_made_by_reading(store: LocalStore, root: Path) -> None:
    assert await names(store) == []
    assert await store.facts("a/b") is None
    await store.delete("a/b")
    with pytest.raises(ObjectNotFound):
        await store.get("a/b", bytes_max=1)
    assert not root.exists()


async def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(store: LocalStore, root: Path) -> None:
    (root / ".partial").mkdir(parents=True)
    dead, living = root / ".partial" / "dead", root / ".partial" / "living"
    dead.write_bytes(b"half a cont")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        await store.put("a", b"content")
        assert left_behind(root) == ["living"]
    assert await names(store) == ["a"]
    other = LocalStore(root)
    await other.put("b", b"content")
    assert left_behind(root) == []
    await other.close()


async def test_what_is_no_object_is_not_shown(store: LocalStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    await store.put("a/b", b"content")
    for name in ("UPPER", ".hidden", "with space", "lost+found"):
        (root / name).write_bytes(b"foreign")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder-link").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    assert await names(store) == ["a/b"]
    for name in ("link", "fifo"):
        assert await store.facts(name) is None
        with pytest.raises(ObjectNotFound):
            await store.get(name, bytes_max=100)


async def test_an_object_is_no_folder_and_a_folder_no_object(store: LocalStore) -> None:
    await store.put("a/b", b"content")
    for name in ("a/b/c", "a/b/c/d"):
        with pytest.raises(InvalidInput):
            await store.put(name, b"below an object")
    for work in (store.put("a", b"in place of a folder"), store.delete("a")):
        with pytest.raises(InvalidInput, match="folder"):
            await work
    with pytest.raises(ObjectNotFound):
        await store.get("a", bytes_max=10)
    assert await names(store) == ["a/b"]


@pytest.mark.parametrize("gone", ["a", ".partial", "."])
async def test_folders_that_somebody_removed_are_made_again(store: LocalStore, root: Path, gone: str) -> None:
    await store.put("a/b/c", b"content")
    shutil.rmtree(root / gone)
    assert await store.put("a/b/d", b"new") is True
    assert "a/b/d" in await names(store)


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let this process's files grow beyond, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_write_that_fails_leaves_nothing(store: LocalStore, root: Path) -> None:
    with files_limited_to(1_000_000):
        with pytest.raises(Unavailable, match="big"):
            await store.put("big", bytes(2_000_000))
        assert await store.put("small", b"content") is True
    assert left_behind(root) == []
    assert await names(store) == ["small"]
    assert await store.put("big", bytes(2_000_000)) is True


async def test_after_a_failed_sync_of_a_folder_nothing_is_acknowledged(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel tells a failed write-back once, and may have dropped what it could not write: the next sync would say that all is well.
    await store.put("a/b", b"content")
    failing = iter([OSError(5, "Input/output error")])
    sync = syncing._sync_folder

    def fail_once(folder: Path) -> None:
        if (error := next(failing, None)) is not None:
            raise error
        sync(folder)

    monkeypatch.setattr(syncing, "_sync_folder", fail_once)
    with pytest.raises(Unavailable, match="Input/output error"):
        await store.put("a/c", b"content")
    for name in ("a/c", "a/d", "other/e"):
        with pytest.raises(Unavailable) as caught:
            await store.put(name, b"content")
        assert "open the store again" in caught.value.hint
    assert await store.get("a/b", bytes_max=10) == b"content", "reading goes on"


async def test_a_place_that_cannot_be_a_store_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        store = LocalStore(place)
        with pytest.raises((ConfigurationError, InvalidInput)):
            await store.put("a", b"content")
        assert await store.facts("a") is None
        await store.close()


async def test_a_closed_store_says_so(store: LocalStore) -> None:
    await store.put("a", b"content")
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.get("a", bytes_max=10)


async def test_puts_that_wait_share_their_syncs(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put("a/0", b"")
    count = 0
    sync = syncing._sync_folder

    def counted(folder: Path) -> None:
        nonlocal count
        count += 1
        sync(folder)

    monkeypatch.setattr(syncing, "_sync_folder", counted)
    await asyncio.gather(*(store.put(f"a/{number}", b"content") for number in range(1, 201)))
    assert 0 < count < 200


async def test_what_is_there_already_is_synced_before_it_is_acknowledged(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever linked it may have died before its own sync.
    await store.put("a/b", b"content")
    synced: list[Path] = []
    sync = syncing._sync_folder

    def recorded(folder: Path) -> None:
        synced.append(folder)
        sync(folder)

    monkeypatch.setattr(syncing, "_sync_folder", recorded)
    other = LocalStore(root)
    assert await other.put("a/b", b"content") is False
    assert {root, root / "a"} <= set(synced), "the object's folder, and the one that this folder is in"
    await other.close()
