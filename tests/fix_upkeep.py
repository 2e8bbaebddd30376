"""What tests of the upkeep share: an agent with snapshots at known versions, and its states from the log alone."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from perdure.engine.digest import digest
from perdure.engine.log.records import AgentName
from perdure.engine.replay import fold_log
from perdure.snapshots.retention import RetentionPolicy
from tests.fix_snapshot_engine import TENANT, Shelved

NAME = AgentName(TENANT, "a")
NEWEST = RetentionPolicy(days=0)


embedded_only = pytest.mark.parametrize("shelved", ["sqlite"], indirect=True)
"""For what does not depend on the log's database."""


async def states(shelved: Shelved, versions: range) -> dict[int, bytes]:
    """Digests of the states at these versions, from the log alone."""
    log = shelved.engine.log
    agent = await log.vault.record(*NAME)
    return {version: digest((await fold_log(log.store, log.vault, agent, to_version=version)).document) for version in versions}


async def state_at(shelved: Shelved, version: int) -> bytes:
    return digest((await shelved.engine.agent("a").state(at_version=version)).document)


async def built(shelved: Shelved, *snapshots: int, head: int = 60, before: int = 0) -> None:
    """An agent with snapshots at these versions."""
    for version in dict.fromkeys([*snapshots, head]):
        if version > before:
            await shelved.talk("a", version - before, start=before)
        before = version
        if version in snapshots:
            await shelved.snapshot("a")


async def versions(shelved: Shelved) -> list[int]:
    return [each.version for each in await shelved.snapshots.list_snapshots(NAME)]


def age(folder: Path, days: float) -> None:
    """Let every object be so old."""
    then = time.time() - days * 86_400
    for file in folder.rglob("*"):
        # What is being written has a name of its own for a moment.
        with contextlib.suppress(FileNotFoundError):
            os.utime(file, (then, then))
