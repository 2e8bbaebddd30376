"""Backups, as people hold them: take, list, verify, drill, prune; and restore into a new place."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from perdure import config
from perdure.client.opening import open_log
from perdure.client.parts import Parts
from perdure.engine.log.contract import LogStore
from perdure.engine.log.sqlite import SqliteStore
from perdure.engine.stopping import rest
from perdure.engine.vault import Vault
from perdure.errors import Conflict
from perdure.identifiers import uuid7
from perdure.recovery.backup.catalog import Catalog, Checked, Freshness, Listed, Pruned
from perdure.recovery.backup.drill import Drilled, drill
from perdure.recovery.backup.export import Exporter
from perdure.recovery.backup.manifest import BackupManifest
from perdure.recovery.backup.objects import Vessel, open_vessel
from perdure.recovery.backup.restore import Restored, Restorer
from perdure.recovery.leases import KeptLease
from perdure.security.dictionaries import DictionaryBook
from perdure.security.keys import KeyProvider, open_provider
from perdure.security.ring import KeyRing
from perdure.snapshots.store import open_store

__all__ = ["Backups", "restore_backup", "vessel_of"]

LEASE = "backup"
Progress = Callable[[int, int], None]


class Backups:
    """Backups of one engine's log. url: of the store that they are kept in, file:///… or s3://…; not the one of the snapshots."""

    def __init__(self, engine: Parts) -> None:
        self._engine = engine
        self._store = engine.log.store

    async def create(self, url: str, progress: Progress | None = None) -> BackupManifest:
        """Take what is new since the newest backup there. Raises Conflict while another is being taken, IntegrityError, Unavailable."""
        taken = await self._take(url, always=True, progress=progress)
        assert taken is not None
        return taken

    async def _take(self, url: str, *, always: bool, progress: Progress | None = None) -> BackupManifest | None:
        """A backup; None where no event is new and one is not taken `always`."""
        await self._engine.log.vault.ring.check_root_key()
        async with self._alone(), self._vessel(url, create=True) as vessel:
            newest = await Catalog(vessel).newest()
            if not always and newest is not None and not newest.lag_events(await self._store.positions()):
                return None
            return await Exporter(self._store, vessel, newest, progress).run()

    async def keep_taking(self, url: str, every_s: float, stop: asyncio.Event, told: Callable[[BackupManifest | Exception], None]) -> None:
        """One every so often until `stop` is set, none while no event is new; told: each that was taken, and why one could not be."""
        while not stop.is_set():
            try:
                taken = await self._take(url, always=False)
                if taken is not None:
                    told(taken)
            except Exception as problem:
                told(problem)  # the next turn tries again; whoever listens decides whether it is grave
            await rest(stop, every_s)

    async def list(self, url: str) -> list[Listed]:
        """The backups of this store, newest first; none where nothing was ever kept."""
        async with self._vessel(url) as vessel:
            return await Catalog(vessel).list()

    async def verify(self, url: str, id: str = "latest", progress: Progress | None = None) -> Checked:
        """Read a whole backup: every object, every offset, every chain. Raises NotFound."""
        async with self._vessel(url) as vessel:
            return await Catalog(vessel).verify(id, progress)

    async def freshness(self, url: str) -> Freshness:
        """What would be lost if the log were lost now."""
        async with self._vessel(url) as vessel:
            return await Catalog(vessel).freshness(self._store)

    async def drill(
        self, url: str, id: str = "latest", *, fraction: float = 1.0, scratch: str | None = None, progress: Progress | None = None
    ) -> Drilled:
        """Restore it into a scratch place and compare; a backup that passes is proven. scratch: URL of an empty place for it, kept afterwards
        [a temporary folder, removed]. Raises NotFound, IntegrityError, AlreadyExists."""
        provider = open_provider(str(self._engine.settings.keys.value))
        async with self._vessel(url) as vessel:
            manifest = await Catalog(vessel).get(id)
            async with _scratch(scratch, manifest.partitions) as store:
                ring = KeyRing(provider, store)
                other = Vault(store, ring, DictionaryBook(ring, store))
                return await drill(vessel, manifest, self._engine.log.vault, other, fraction=fraction, progress=progress)

    async def prune(self, url: str, *, keep: int, dry_run: bool = False) -> Pruned:
        """Forget all but the newest `keep` backups and the newest proven one. Raises InvalidInput, Conflict."""
        async with self._alone(), self._vessel(url) as vessel:
            return await Catalog(vessel).prune(keep, dry_run=dry_run)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        lease = await KeptLease.acquire(self._store, LEASE, uuid7().hex)
        if lease is None:
            raise Conflict("another backup is being taken or pruned", hint="wait for it")
        async with lease:
            yield

    @asynccontextmanager
    async def _vessel(self, url: str, *, create: bool = False) -> AsyncIterator[Vessel]:
        async with vessel_of(url, open_provider(str(self._engine.settings.keys.value)), create=create) as vessel:
            yield vessel


async def restore_backup(
    url: str, settings: config.Settings, *, id: str = "latest", to_time: datetime | None = None, progress: Progress | None = None
) -> Restored:
    """Restore a backup into the log that the settings name, which must be empty or not there yet; an interrupted one goes on.

    to_time: only what the log had at that moment. Raises NotFound, AlreadyExists, IntegrityError, ConfigurationError, KeyUnavailable.
    """
    async with vessel_of(url, open_provider(str(settings.keys.value))) as vessel:
        manifest = await Catalog(vessel).get(id)
        store = await open_log(settings, manifest.partitions, create=True)
        try:
            return await Restorer(vessel, manifest, store, to_time=to_time, progress=progress).run()
        finally:
            await store.close()


@asynccontextmanager
async def vessel_of(url: str, provider: KeyProvider, *, create: bool = False) -> AsyncIterator[Vessel]:
    """The store of backups at a URL, with its key; see `open_vessel`."""
    objects = open_store(url)
    try:
        yield await open_vessel(objects, provider, create=create)
    finally:
        await objects.close()


@asynccontextmanager
async def _scratch(url: str | None, partitions: int) -> AsyncIterator[LogStore]:
    with tempfile.TemporaryDirectory(prefix="perdure-drill-") as folder:
        if url is None:
            store: LogStore = await SqliteStore.open(Path(folder), partitions=partitions)
        else:
            store = await open_log(config.load({"log": url, "keys": "env:"}), partitions, create=True)
        try:
            yield store
        finally:
            await store.close()
