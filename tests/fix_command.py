"""The command as a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

COMMAND_TIMEOUT_S = 120.0
COMMAND = (sys.executable, "-m", "perdure.cli")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as one JSON value."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error object of stderr."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


@dataclass(frozen=True)
class Perdure:
    """Runs `perdure …` in a folder of its own. variables: environment beside what a process needs to start."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the caller's own settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        return {**inherited, **self.variables}

    def __call__(self, *words: str | Path, stdin: str = "", code: int | None = 0) -> Outcome:
        """Run and wait; code: the exit code that it must end with (None: any)."""
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Run without waiting."""
        command = [*COMMAND, *map(str, words)]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )


@pytest.fixture
def perdure_command(tmp_path: Path) -> Perdure:
    """The command on an embedded log in a fresh folder."""
    return Perdure(tmp_path)


@pytest.fixture
def perdure_with(tmp_path: Path) -> Callable[[Mapping[str, str]], Perdure]:
    """The command in a fresh folder, with settings in the environment."""
    return lambda variables: Perdure(tmp_path, variables)
