"""Which folder the URL of an embedded log names, and which URLs are taken for a slip."""

from __future__ import annotations

from pathlib import Path

import pytest

import perdure
from perdure import config
from perdure.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folder(url: str) -> Path:
    return config.load({"log": url}, {}).folder


@pytest.mark.parametrize("slip", ["tmp/state", "var/lib/perdure", "usr", "dev/shm/x"])
def test_an_absolute_path_with_a_slash_too_few_is_refused_with_both_ways_to_write_it(slip: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        folder(f"sqlite:///{slip}")
    assert f"sqlite:////{slip} " in caught.value.hint
    assert f"sqlite:///./{slip} " in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_it_is_refused_also_where_a_folder_of_that_name_was_left_by_a_slip(tmp_path: Path) -> None:
    (tmp_path / tmp_path.parts[1]).mkdir()
    with pytest.raises(ConfigurationError, match="less of it is there"):
        folder(f"sqlite://{tmp_path}/log")
    assert folder(f"sqlite:///{tmp_path}/log") == tmp_path / "log"


def test_what_is_meant_is_taken_as_it_is_written(tmp_path: Path) -> None:
    assert folder("sqlite:////tmp/state") == Path("/tmp/state")
    assert folder("sqlite:///./tmp/state") == Path("tmp/state")
    assert folder("sqlite:///../tmp/state") == Path("../tmp/state")
    assert folder("sqlite:///state") == Path("state")
    assert folder("sqlite:///.") == Path()
    assert folder("sqlite:///~/state") == Path.home() / "state"
    (tmp_path / "tmp").mkdir()
    assert folder("sqlite:///tmp/state-of-nobody-else") == Path("tmp/state-of-nobody-else")


@pytest.mark.parametrize(
    "url", ["sqlite:", "sqlite://", "sqlite:///", "sqlite://state", "sqlite:state", "sqlite:///~nobody-of-this-name/state"]
)
def test_what_names_no_folder_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        folder(url)
    assert "sqlite:////absolute/folder" in caught.value.hint


@pytest.mark.parametrize("wrong", [3, Path("state")])
def test_what_is_no_text_is_no_url(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=f"log is a {type(wrong).__name__}, not a URL"):
        perdure.open(wrong)  # type: ignore[arg-type]


def test_what_is_being_opened_shows_no_password_and_says_how_it_is_opened() -> None:
    opening = perdure.open("postgresql://me:geheim@127.0.0.1/x")
    assert repr(opening) == "<perdure.open of postgresql://me:***@127.0.0.1/x: async with it, or await it>"
    with pytest.raises(TypeError, match=r"perdure\.sync\.open"), opening:
        pass


def test_a_value_may_come_from_a_file_below_the_variable_itself(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("postgresql://me:geheim@db/agents\n")
    named = {"PERDURE_LOG_FILE": f"{tmp_path}/secret"}
    assert config.load({}, named).log == config.Setting("postgresql://me:geheim@db/agents", "environment PERDURE_LOG_FILE")
    assert config.load({}, {**named, "PERDURE_LOG": "sqlite:///./x"}).log.value == "sqlite:///./x"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_that_holds_no_value_is_a_typed_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigurationError, match="PERDURE_KEYS_FILE names") as caught:
        config.load({}, {"PERDURE_KEYS_FILE": f"{tmp_path}/secret"})
    assert caught.value.hint
