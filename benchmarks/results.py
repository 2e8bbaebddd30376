"""Results as they are kept: one JSON file per benchmark, with when and how it was measured."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings

__all__ = ["FOLDER", "load_all", "save"]

FOLDER = Path(__file__).parent / "results"


def save(folder: Path, name: str, report: dict[str, Any], settings: Settings) -> bool:
    """Keep what a benchmark found, or `{"failed": reason}`, in place of what was kept of it before. A failure never takes the place of figures:
    then nothing is written, and the answer is False."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    if "failed" in report and file.exists() and "failed" not in json.loads(file.read_text()):
        return False
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = {"benchmark": name, "when": when, "quick": settings.quick, "scale": settings.scale}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(about | report, indent=2, ensure_ascii=False) + "\n")
    new.replace(file)
    return True


def load_all(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What is kept, by benchmark."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
