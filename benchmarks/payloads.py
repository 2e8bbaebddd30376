"""What all sides write: messages of 1 KB that are made, and messages of real conversations, in a file that every driver reads."""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

from benchmarks.states import DATA_DEFAULT

__all__ = ["conversations", "raw_bytes", "write"]

SYNTHETIC_BYTES = 1024
SYNTHETIC = 256
FILE = Path("trajectories") / "tau-bench" / "gpt-4o-airline.json"


def conversations() -> list[list[dict[str, Any]]]:
    """The messages of every conversation of tau-bench's airline, as its file holds them."""
    file = Path(os.environ.get("PERDURE_TEST_DATA", DATA_DEFAULT)) / FILE
    return [record["traj"] for record in json.loads(file.read_text())]


def raw_bytes(conversation: list[dict[str, Any]]) -> int:
    """Its messages as compact JSON, a message a line."""
    return sum(len(json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()) + 1 for message in conversation)


def synthetic(seed: int = 1) -> list[dict[str, Any]]:
    """Messages of 1 KB as JSON, one half of them random and the other words, each another."""
    chance = random.Random(seed)
    words = "the flight is confirmed and leaves on time, " * 20
    made = []
    for _ in range(SYNTHETIC):
        noise = base64.b64encode(chance.randbytes(SYNTHETIC_BYTES * 3 // 8)).decode()
        message = {"role": "user", "content": noise}
        short = SYNTHETIC_BYTES - len(json.dumps(message, separators=(",", ":")))
        made.append(message | {"content": noise + words[:short]})
    return made


def write(file: Path, given: list[list[dict[str, Any]]] | None = None) -> list[list[dict[str, Any]]]:
    """The file for the drivers; the conversations in it: those of tau-bench, or given ones."""
    found = conversations() if given is None else given
    real = [message for conversation in found for message in conversation]
    file.write_text(json.dumps({"synthetic": synthetic(), "real": real[:2000], "conversations": found}))
    return found
