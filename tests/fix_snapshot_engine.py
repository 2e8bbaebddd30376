"""An engine with a store of snapshots, on both logs, and hands on what is in the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import config
from perdure.client.engine import Engine
from perdure.client.snapshot_facts import Snapshot
from perdure.engine.event import Event
from perdure.engine.log.records import AgentName
from perdure.engine.log.snapshot_rows import SnapshotRow

TENANT = "default"


class Shelved:
    """An engine, the folder of its snapshots, and the settings that open it once more."""

    def __init__(self, engine: Engine, settings: config.Settings, folder: Path) -> None:
        self.engine = engine
        self.settings = settings
        self.folder = folder
        self.snapshots = engine.snapshots

    async def talk(self, agent: str, count: int, *, start: int = 0, padding: str = "") -> int:
        """Append so many events that each add a message and set the count; the newest version."""
        events = [
            Event(
                "said",
                changes=(
                    perdure.append("/messages", {"role": "user", "content": f"{agent} says {i} {padding}{'and so on ' * (i % 29)}"}),
                    perdure.set_value("/count", i),
                ),
            )
            for i in range(start, start + count)
        ]
        return (await self.engine.log.append_events(AgentName(TENANT, agent), events)).version

    async def snapshot(self, agent: str, **options: Any) -> Snapshot:
        """Make a snapshot of the newest version; it must be new."""
        made = await self.snapshots.create_snapshot(AgentName(TENANT, agent), **options)
        assert not made.already
        return made.snapshot

    async def row(self, snapshot: Snapshot) -> SnapshotRow:
        """Its row."""
        row = await self.engine.log.store.get_snapshot(TENANT, snapshot.id)
        assert row is not None
        return row

    async def objects(self, snapshot: Snapshot) -> list[Path]:
        """The files of its manifest and of its chunks."""
        row = await self.row(snapshot)
        contents = self.snapshots.shelf.contents
        keys, manifest = await contents.keys(row.tenant, row.agent), await contents.manifest(row)
        return [self.folder / row.manifest, *(self.folder / keys.chunk_object(chunk.name) for chunk in manifest.chunks)]

    async def damage(self, snapshot: Snapshot, *, which: int = -1) -> None:
        """Flip one bit of one of its files; 0 is the manifest."""
        file = (await self.objects(snapshot))[which]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.chmod(0o600)
        file.write_bytes(content)

    async def fresh(self) -> Engine:
        """The same installation as another process would open it, without anything remembered; close it."""
        return await perdure.open(settings=self.settings)


@pytest.fixture(params=["sqlite", "postgres"])
async def shelved(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelved]:
    """A `Shelved`."""
    url = f"sqlite:///{tmp_path}/log" if request.param == "sqlite" else request.getfixturevalue("fresh_database")
    folder = tmp_path / "snapshots"
    settings = config.load({"log": url, "keys": f"file://{tmp_path}/root.key", "store": f"file://{folder}"}, {})
    async with perdure.open(settings=settings) as engine:
        yield Shelved(engine, settings, folder)
