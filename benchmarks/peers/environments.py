"""An environment of its own per peer, made when it is first needed, outside of the source tree: its packages never meet perdure's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import note
from perdure.services.jars import cache_folder

__all__ = ["PeerUnavailable", "command"]

HERE = Path(__file__).parent
SETUP_TIMEOUT_S = 600
_OURSELVES = ("perdure", "raw_sqlite")
"""These need nothing that this process does not have."""


class PeerUnavailable(Exception):
    """A peer that cannot be measured here, and why."""


def command(peer: str) -> tuple[list[str], dict[str, str]]:
    """The program and the environment variables that run a peer's driver; its packages are installed first. Raises PeerUnavailable. Blocking."""
    variables = dict(os.environ) | {"PYTHONPATH": str(HERE.parent.parent)}
    if (HERE / peer / "driver.mjs").is_file():
        place = _made(peer, "package.json", _npm)
        for file in (HERE / peer / "driver.mjs", HERE / "kit.mjs"):  # Node looks for packages beside the file that imports them
            shutil.copy(file, place)
        return ["node", str(place / "driver.mjs")], variables
    if peer in _OURSELVES:
        return [sys.executable, "-m", f"benchmarks.peers.{peer}.driver"], variables
    place = _made(peer, "requirements.txt", _pip)
    return [str(place / "bin" / "python"), "-m", f"benchmarks.peers.{peer}.driver"], variables


def _made(peer: str, pins: str, make: Callable[[Path, Path], None]) -> Path:
    """The peer's environment for these pins; two processes that want it at once make it once."""
    wanted = (HERE / peer / pins).read_bytes() + sys.version.encode()
    cache = cache_folder() / "peers"
    place = cache / f"{peer}-{hashlib.sha256(wanted).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / ".ready").is_file():
            note(f"peers: installing {peer} into {place}")
            shutil.rmtree(place, ignore_errors=True)
            try:
                make(HERE / peer, place)
            except (OSError, subprocess.SubprocessError) as error:
                shutil.rmtree(place, ignore_errors=True)
                raise PeerUnavailable(f"{peer} could not be installed: {_reason(error)}") from error
            (place / ".ready").touch()
    return place


def _pip(source: Path, place: Path) -> None:
    _run([sys.executable, "-m", "venv", str(place)], source)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(source / "requirements.txt")], source)


def _npm(source: Path, place: Path) -> None:
    place.mkdir()
    shutil.copy(source / "package.json", place)
    _run(["npm", "install", "--no-fund", "--no-audit", "--loglevel", "error"], place)


def _run(program: list[str], folder: Path) -> None:
    subprocess.run(program, cwd=folder, check=True, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S)


def _reason(error: Exception) -> str:
    said = (getattr(error, "stderr", "") or "").strip().splitlines()
    return next((line for line in said if "error" in line.lower()), str(error))
