"""Help, versions, settings, errors: what needs no agent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from perdure.cli import main
from perdure.cli.commands import COMMANDS, overview
from tests.fix_command import Perdure


def test_help_names_every_command(perdure_command: Perdure) -> None:
    text = perdure_command("--help").out
    assert [command.name for command in COMMANDS if f"  {command.name} " not in text] == []


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    # In this process: that help works as a command, others see, and a process for each would take longer than all that is asked here.
    assert main([name, "--help"]) == 0
    assert f"perdure {name}" in capsys.readouterr().out


def test_help_imports_neither_the_parser_nor_the_engine() -> None:
    code = (
        "import sys; from perdure.cli import main; main(['--help'])\n"
        "print([m for m in ('cyclopts', 'rich', 'asyncio', 'psycopg', 'aiokafka', 'redis', 'cryptography') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


def test_an_unknown_command_is_one_line_with_a_hint(perdure_command: Perdure) -> None:
    done = perdure_command("shw", code=2)
    assert done.err.splitlines() == ["perdure: there is no command 'shw'", "hint: did you mean perdure show?"]
    assert done.out == ""


def test_an_unknown_flag_is_a_usage_error(perdure_command: Perdure) -> None:
    done = perdure_command("show", "x", "--bla", code=2)
    assert "--bla" in done.err
    assert done.err.splitlines()[-1] == "hint: perdure show --help"


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (("show",), "perdure show needs AGENT", "perdure show --help"),
        (("show", "a", "b"), "perdure show takes no 'b'", "perdure show --help"),
        (("show", "a", "--at-version"), "--at-version needs a value", "perdure show --help"),
        (("show", "a", "--at-version", "z"), "--at-version is 'z', not a whole number", "perdure show --help"),
        (("snapshot", "show", "z"), "ID is 'z', not a UUID", "perdure snapshot show --help"),
        (("backup", "status"), "perdure backup status needs --to", "PERDURE_BACKUP gives it, too; perdure backup status --help"),
    ],
)
def test_a_misused_command_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str, hint: str
) -> None:
    monkeypatch.delenv("PERDURE_BACKUP", raising=False)
    assert main(list(words)) == 2
    assert capsys.readouterr().err.splitlines() == [f"perdure: {said}", f"hint: {hint}"]


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_help_stays_within_the_terminal_and_keeps_its_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["show", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    options = [line for line in lines if line.startswith("  --at-version") or line.startswith("  --consistency")]
    assert {line.index(word) for line, word in zip(options, ("The", "strong:"), strict=True)} == {24}
    # A URL is not broken; nothing else is longer than the terminal.
    assert [line for line in lines if len(line.rstrip()) > max(columns, 44)] == []


def test_the_overview_ends_where_the_terminal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = overview().splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("  doctor ") for line in lines)


def test_an_agent_that_is_not_there_has_a_hint_where_to_look(perdure_command: Perdure) -> None:
    perdure_command("append", "here", "--type", "noted", "--tenant", "acme")
    lines = perdure_command("show", "here", code=3).err.splitlines()
    assert lines[0] == "perdure: there is no agent 'here' of tenant 'default'"
    assert lines[1].startswith("hint: perdure agents --tenant default lists them")
    assert "acme" in perdure_command("show", "nobody", "--tenant", "acme", "--json", code=3).error["hint"]


def test_with_json_an_error_is_an_object_on_stderr(perdure_command: Perdure) -> None:
    done = perdure_command("show", "x", "--at-version", "z", "--json", code=2)
    assert done.error["code"] == "usage"
    assert done.error["exit_code"] == 2


def test_a_wrong_url_is_named_without_its_password(perdure_command: Perdure) -> None:
    for flag in ("--log", "--bus", "--cache", "--store", "--keys"):
        error = perdure_command("agents", flag, "nothing://user:geheim@host", "--json", code=2).error
        assert error["code"] == "configuration"
        assert "nothing:" in error["message"]
        assert "geheim" not in json.dumps(error)


def test_flags_of_every_command_may_stand_before_it(perdure_command: Perdure) -> None:
    settings = perdure_command("--json", "--log", "sqlite:///./elsewhere", "config", "show").json
    assert settings["log"] == {"value": "sqlite:///./elsewhere", "source": "flag"}


def test_a_flag_beats_the_environment_which_beats_the_file(perdure_command: Perdure) -> None:
    (perdure_command.folder / "perdure.toml").write_text('log = "sqlite:///./file"\nbus = "kafka://file:1"\ncache = "redis://file:1"\n')
    command = Perdure(perdure_command.folder, {"PERDURE_LOG": "sqlite:///./environment", "PERDURE_BUS": "kafka://environment:1"})
    settings = command("config", "show", "--log", "sqlite:///./flag", "--json").json
    assert [settings[name]["value"] for name in ("log", "bus", "cache")] == ["sqlite:///./flag", "kafka://environment:1", "redis://file:1"]


def test_config_show_masks_passwords(perdure_command: Perdure) -> None:
    text = perdure_command("config", "show", "--log", "postgresql://me:geheim@db/x?sslpassword=geheim").out
    assert "geheim" not in text
    assert "me:***@db" in text


def test_version_says_what_is_installed(perdure_command: Perdure) -> None:
    assert perdure_command("version", "--json").json["python"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_know_the_commands(perdure_command: Perdure, shell: str) -> None:
    assert "quarantine" in perdure_command("completion", shell).out


def test_a_reader_that_leaves_ends_the_command_quietly(perdure_command: Perdure) -> None:
    process = perdure_command.start("completion", "bash")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(120) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


def test_an_embedded_log_has_nothing_to_relay_and_says_so(perdure_command: Perdure) -> None:
    perdure_command("append", "a", "--set", "/n=1")
    for _ in range(2):
        done = perdure_command("run", "--until-drained", "--json")
        assert (done.json, done.err) == ({"drained": True, "lags": {}}, "")
    for alone in ("relay", "project"):
        assert perdure_command(alone, "--until-drained", "--json", code=2).error["code"] == "configuration"


def test_an_empty_tenant_is_no_tenant(perdure_command: Perdure) -> None:
    perdure_command("init")
    assert perdure_command("append", "a", "--set", "/n=1", "--tenant", "", "--json", code=2).error["code"] == "invalid_input"
    perdure_command("show", "a", code=3)
