"""Results as they are kept: one JSON file per benchmark, with when and how it was measured."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings

__all__ = ["FOLDER", "load_all", "save"]

FOLDER = Path(__file__).parent / "results"


def save(folder: Path, name: str, report: dict[str, Any], settings: Settings) -> Path:
    """Keep what a benchmark found, or `{"failed": reason}`, in place of what was kept of it before."""
    folder.mkdir(parents=True, exist_ok=True)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = {"benchmark": name, "when": when, "quick": settings.quick, "scale": settings.scale}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(about | report, indent=2, ensure_ascii=False) + "\n")
    return file


def load_all(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What is kept, by benchmark."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
