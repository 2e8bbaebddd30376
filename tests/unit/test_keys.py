"""Root keys: the file, the environment, and what they wrap."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import ConfigurationError, KeyUnavailable, PerdureError, SealBroken
from perdure.security.keys import EnvironmentKeyProvider, FileKeyProvider, key_id_of, open_provider

KEY_A, KEY_B = bytes(range(32)), bytes(range(32, 64))


def environment(*keys: bytes) -> EnvironmentKeyProvider:
    return EnvironmentKeyProvider("ROOT", {"ROOT": ",".join(base64.b64encode(key).decode() for key in keys)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "root.key"


async def test_the_key_file_is_made_at_first_use_for_its_owner_only(path: Path) -> None:
    provider = FileKeyProvider(path)
    assert not path.exists()
    wrapped = await provider.wrap(b"secret", b"context")
    assert await provider.unwrap(wrapped, b"context") == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["root.key"]
    assert provider.key_id.encode() in wrapped


async def test_a_second_provider_on_the_same_file_opens_what_the_first_wrapped(path: Path) -> None:
    wrapped = await FileKeyProvider(path).wrap(b"secret", b"context")
    assert await FileKeyProvider(path).unwrap(wrapped, b"context") == b"secret"


def _make_key(path: str, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    results.put(FileKeyProvider(path).key_id)  # type: ignore[attr-defined]


def test_processes_that_make_the_file_at_once_end_with_one_key(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_make_key, args=(str(path), barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    ids = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
    assert ids == {FileKeyProvider(path).key_id}
    assert len(json.loads(path.read_text())["keys"]) == 1


async def test_the_loser_of_the_race_takes_the_key_that_stands(path: Path) -> None:
    winner = FileKeyProvider(path)
    winner_id = winner.key_id
    provider = FileKeyProvider(path)
    provider._file._create(b"another file")  # as if the winner's file had appeared after the look for it
    assert provider.key_id == winner_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
async def test_a_file_that_others_can_use_is_refused_with_a_hint(path: Path, mode: int) -> None:
    assert FileKeyProvider(path).key_id
    path.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        await FileKeyProvider(path).wrap(b"secret", b"")
    assert "chmod 600" in caught.value.hint


async def test_a_folder_in_which_others_can_replace_the_file_is_refused(path: Path) -> None:
    assert FileKeyProvider(path).key_id
    path.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="replace"):
        await FileKeyProvider(path).wrap(b"secret", b"")


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "format", "current", "type", "binary"])
async def test_a_damaged_file_is_refused_and_its_keys_are_not_told(path: Path, damage: str) -> None:
    assert FileKeyProvider(path).key_id
    text = path.read_text()
    key = json.loads(text)["keys"][0]["key"]
    other = ("B" if key[0] == "A" else "A") + key[1:]
    path.write_bytes(
        {
            "cut": text[:-20].encode(),
            "empty": b"",
            "bit": text.replace(key, other).encode(),
            "format": text.replace("keys-1", "keys-9").encode(),
            "current": text.replace('"current": "', '"current": "0').encode(),
            "type": b'{"format": 1, "current": [], "keys": "x"}',
            "binary": b"\xff\xfe" + bytes(64),
        }[damage]
    )
    with pytest.raises(ConfigurationError) as caught:
        await FileKeyProvider(path).wrap(b"secret", b"")
    assert caught.value.hint
    assert key not in str(caught.value.as_dict())
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("place", ["folder", "under_a_file"])
async def test_a_path_that_cannot_be_a_key_file_is_a_typed_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        await FileKeyProvider(tmp_path if place == "folder" else tmp_path / "file" / "root.key").wrap(b"secret", b"")
    assert caught.value.hint


async def test_a_rotated_file_wraps_with_the_new_key_and_opens_with_the_old(path: Path) -> None:
    provider, elsewhere = FileKeyProvider(path), FileKeyProvider(path)
    before = await provider.wrap(b"old", b"context")
    assert await elsewhere.unwrap(before, b"context") == b"old"
    old_id, new_id = provider.key_id, await provider.add_key()
    assert provider.key_id == new_id != old_id
    after = await provider.wrap(b"new", b"context")
    assert key_id_of(await elsewhere.wrap(b"x", b"")) == new_id, "others wrap with the new key as well"
    assert await provider.unwrap(before, b"context") == b"old"
    assert await elsewhere.unwrap(after, b"context") == b"new", "a provider that is running reads the file again"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_keys_that_are_added_at_once_are_all_kept(path: Path) -> None:
    providers = [FileKeyProvider(path) for _ in range(5)]
    first = providers[0].key_id
    ids = await asyncio.gather(*(provider.add_key() for provider in providers))
    assert {entry["id"] for entry in json.loads(path.read_text())["keys"]} == {first, *ids}


async def test_what_a_killed_process_left_of_a_key_file_is_removed(path: Path) -> None:
    provider = FileKeyProvider(path)
    assert provider.key_id
    left, foreign = path.parent / ".root.key.abcdefgh", path.parent / ".other.key.abcdefgh"
    for file in (left, foreign):
        file.write_bytes(path.read_bytes())
    await provider.add_key()
    assert not left.exists()
    assert foreign.exists()
    path.unlink()
    left.write_bytes(b"half a file")
    assert FileKeyProvider(path).key_id
    assert not left.exists()


async def test_a_key_that_is_not_in_the_file_is_unavailable(path: Path) -> None:
    wrapped = await environment(KEY_A).wrap(b"secret", b"")
    with pytest.raises(KeyUnavailable) as caught:
        await FileKeyProvider(path).unwrap(wrapped, b"")
    assert caught.value.hint


async def test_a_file_that_is_not_there_is_not_made_to_open_what_another_one_wrapped(path: Path) -> None:
    wrapped = await FileKeyProvider(path).wrap(b"k", b"c")
    elsewhere = path.parent / "elsewhere" / "root.key"
    provider = FileKeyProvider(elsewhere)
    with pytest.raises(KeyUnavailable, match="there is no file") as caught:
        await provider.unwrap(wrapped, b"c")
    assert "--keys" in caught.value.hint
    assert not elsewhere.parent.exists()
    # It is not remembered as empty: the file that comes back is found.
    elsewhere.parent.mkdir(mode=0o700)
    path.rename(elsewhere)
    assert await provider.unwrap(wrapped, b"c") == b"k"


async def test_the_environment_wraps_with_its_first_key_and_opens_with_all() -> None:
    old = environment(KEY_A)
    wrapped = await old.wrap(b"secret", b"context")
    rotated = environment(KEY_B, KEY_A)
    assert rotated.key_id != old.key_id
    assert await rotated.unwrap(wrapped, b"context") == b"secret"
    with pytest.raises(KeyUnavailable):
        await environment(KEY_B).unwrap(wrapped, b"context")


@pytest.mark.parametrize("value", ["", "  ", "short", "!" * 44, base64.b64encode(bytes(31)).decode(), "ä" * 44])
def test_an_environment_without_a_proper_key_is_refused_without_telling_it(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EnvironmentKeyProvider("ROOT", {"ROOT": value})
    assert "ROOT" in caught.value.message
    assert caught.value.hint
    assert not value.strip() or value not in caught.value.message


async def test_urls_name_providers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_ROOT_KEY", base64.b64encode(KEY_A).decode())
    monkeypatch.setenv("OTHER", base64.b64encode(KEY_B).decode())
    assert open_provider("env:").key_id == environment(KEY_A).key_id
    assert open_provider("env:OTHER").key_id == environment(KEY_B).key_id
    spaced = path.parent / "a key"
    assert open_provider(f"file://{str(spaced).replace(' ', '%20')}").key_id == FileKeyProvider(spaced).key_id


@pytest.mark.parametrize("url", ["", "root.key", "file:root.key", "file://server/root.key", "file:///folder/", "http://x"])
def test_urls_that_name_no_provider_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_provider(url)
    assert "file:///" in caught.value.hint


async def test_every_wrap_differs() -> None:
    provider = environment(KEY_A)
    assert await provider.wrap(b"secret", b"") != await provider.wrap(b"secret", b"")


async def test_every_flipped_bit_and_every_cut_of_a_wrapped_key_is_refused() -> None:
    provider = environment(KEY_A)
    wrapped = await provider.wrap(KEY_B, b"context")
    for position in range(len(wrapped) * 8):
        broken = bytearray(wrapped)
        broken[position // 8] ^= 1 << position % 8
        # A flipped key id names a key that nobody has; everything else fails its authentication.
        with pytest.raises((SealBroken, KeyUnavailable)):
            await provider.unwrap(bytes(broken), b"context")
    for length in range(len(wrapped)):
        with pytest.raises((SealBroken, KeyUnavailable)):
            await provider.unwrap(wrapped[:length], b"context")
    with pytest.raises(SealBroken):
        await provider.unwrap(wrapped, b"another context")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_but_a_typed_error(garbage: bytes) -> None:
    provider = environment(KEY_A)
    named = bytes((1, 16)) + provider.key_id.encode() + garbage
    for value in (garbage, named):
        with pytest.raises(PerdureError):
            asyncio.run(provider.unwrap(value, b""))
