"""The code that the documents show does what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.cli.commands import COMMANDS
from perdure.cli.entry import build, globals_behind

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 120


def shown(document: str, beginning: str) -> str:
    """The block of Python that begins so."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    return next(block for block in blocks if block.startswith(beginning))


def run(code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_ten_lines_of_the_readme(tmp_path: Path) -> None:
    out = run(shown("README.md", "import asyncio, perdure"), tmp_path)
    assert "'status': 'busy'" in out
    assert "Change(" in out
    assert (tmp_path / "state" / "log.db").exists()


def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```\n(echo .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = ["bash", "-euc", lines]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "1 agent, 3 events new, 0 known already"
    assert "everything holds" in done.stdout


@pytest.mark.parametrize("beginning", ["import perdure\n\nasync with"])
def test_the_first_lines_of_the_guide(tmp_path: Path, beginning: str) -> None:
    body = shown("docs/client.md", beginning).removeprefix("import perdure\n\n")
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"import asyncio, perdure\nasync def main():\n{indented}        print(state.version, state.document)\nasyncio.run(main())\n"
    assert run(code, tmp_path) == "2 {'messages': [{'role': 'user'}], 'status': 'busy'}\n"


def test_the_guide_without_asyncio(tmp_path: Path) -> None:
    code = shown("docs/client.md", "import perdure.sync").replace("import perdure.sync", "import perdure, perdure.sync")
    assert run(code, tmp_path) == "1 noted\n"


def commands(document: Path) -> list[str]:
    """The lines of the document's blocks that begin with perdure, or have it behind a pipe or a semicolon; choices and gaps filled in."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in re.sub(r"\s#.*", "", block, flags=re.MULTILINE).splitlines():
            parts = [part.strip() for part in re.split(r"; | \| ", line)]
            cron = [part.partition("perdure ")[1:] for part in parts if re.match(r"[\d*]+ [\d*]+ \* \* \*  perdure ", part)]
            found += ["".join(part) for part in cron] + [part for part in parts if part.startswith("perdure ")]
    gaps_filled = [re.sub(r"(?<= )…(?= |$)", "x", each) for each in found]
    return [re.sub(r"[|][a-z|]+", "", re.sub(r"[\[\]…]", "", each)) for each in gaps_filled]


WRITTEN = [ROOT / "README.md", *sorted(each for each in (ROOT / "docs").glob("*.md") if each.name != "commands.md")]
"""By people: the page of all commands is made from the commands themselves."""


@pytest.mark.parametrize("document", WRITTEN, ids=lambda each: each.name)
def test_the_commands_that_documents_show_are_commands(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_BACKUP", "file:///backups")  # as the guide has it before its commands
    parser = build()
    for line in commands(document):
        words = globals_behind(shlex.split(line)[1:])
        assert words[0] in {command.name for command in COMMANDS}, line
        # Raises, and so names, what no command takes.
        parser.parse_args(words, exit_on_error=False, print_error=False)


def test_documents_are_looked_through() -> None:
    assert len(commands(ROOT / "docs" / "recovery.md")) > 20
    assert "perdure scrub --fraction 0.1 --json" in commands(ROOT / "docs" / "upkeep.md")
    assert any(line.startswith("perdure migrate rebalance --by agents --dry-run") for line in commands(ROOT / "docs" / "migration.md"))


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda each: each.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]
    assert [link for link in links if not (document.parent / link.partition("#")[0]).exists()] == []
