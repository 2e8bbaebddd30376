"""The code that the documents show does what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
