"""The address of another engine is right wherever it is read, and holds nothing secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.client.transfers import address_of


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://user:secret@there:5433/perdure?sslmode=require&password=secret", "postgresql://there:5433/perdure"),
        ("postgresql://user:se%40cret@[::1]/perdure", "postgresql://[::1]/perdure"),
        ("postgresql://user:secret@one:1,two:2/perdure", "postgresql://one:1,two:2/perdure"),
        ("postgresql://user:secret@/perdure?host=/run/pg&port=5433&password=secret", "postgresql:///perdure?host=/run/pg&port=5433"),
    ],
)
def test_a_server_is_named_without_user_and_password(url: str, address: str) -> None:
    assert address_of(url) == address


def test_a_folder_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    there = f"sqlite:///{tmp_path}/there"
    assert there.startswith("sqlite:////")
    assert [address_of(url) for url in ("sqlite:///./there", "sqlite:///there", "sqlite:///~/there", there)] == [there] * 4
