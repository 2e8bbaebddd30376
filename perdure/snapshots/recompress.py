"""Stored snapshots anew: with another codec, a dictionary that was trained since, the tenant's newest key.

What always holds: the new bytes are stored, read back and opened before the row that names them takes the old one's place, in one step. Flags,
promises, creator and time stay; the id is a new one. The old objects are swept away later.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentRecord
from perdure.engine.log.snapshot_rows import CHECKPOINT, SnapshotRow
from perdure.engine.steps import reach
from perdure.errors import Unavailable
from perdure.identifiers import uuid7
from perdure.limits import SNAPSHOTS_PER_AGENT_MAX
from perdure.snapshots.codecs import codec_named
from perdure.snapshots.manifest import seal_manifest
from perdure.snapshots.pack import pack
from perdure.snapshots.shelf import SnapshotShelf
from perdure.snapshots.zstd import NO_DICTIONARY

__all__ = ["Recompressed", "recompress"]


class Recompressed(msgspec.Struct):
    """snapshots: that were looked at. rewritten: that were made otherwise. bytes_before, bytes_after: of their objects, shared ones too."""

    snapshots: int = 0
    rewritten: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


async def recompress(
    store: LogStore, shelf: SnapshotShelf, agent: AgentRecord, codec: str = "zstd", *, dry_run: bool = False
) -> Recompressed:
    """Rewrite an agent's whole snapshots that were not made with this codec, the newest dictionary for it and the tenant's newest key.

    Raises InvalidInput, IntegrityError (one is damaged; it stays as it is), Unavailable, KeyUnavailable. Those done before stay done.
    """
    chosen = codec_named(codec)
    done = Recompressed()
    keys = await shelf.contents.keys(agent.tenant, agent.agent)
    dictionary = await shelf.contents.book.newest(agent.tenant, agent.type) if chosen.takes_dictionary else NO_DICTIONARY
    wanted = (chosen.id, dictionary.id, keys.version)
    for row in await store.snapshots(agent, limit=SNAPSHOTS_PER_AGENT_MAX, good=True):
        done.snapshots += 1
        manifest = await shelf.contents.manifest(row)
        if (manifest.codec, manifest.dictionary, manifest.key_version) == wanted:
            continue
        new = row if dry_run else await _rewrite(store, shelf, agent, row, codec)
        if new is not None:
            done.rewritten += 1
            done.bytes_before += row.stored_bytes
            done.bytes_after += new.stored_bytes
    return done


async def _rewrite(store: LogStore, shelf: SnapshotShelf, agent: AgentRecord, row: SnapshotRow, codec: str) -> SnapshotRow | None:
    """The row in its place; None when the old one went away, or was found damaged, meanwhile."""
    async with shelf.turns.writing() as turn:
        opened = await shelf.contents.read(row)
        keys, before = await shelf.contents.keys(agent.tenant, agent.agent), opened.manifest
        packed = pack(
            opened.folded,
            keys=keys,
            created_us=before.created_us,
            creator=before.creator,
            trigger=before.trigger,
            reason=before.reason,
            kind="checkpoint" if row.kind == CHECKPOINT else "full",
            codec=codec,
            dictionary=await shelf.contents.book.newest(agent.tenant, agent.type),
            generation=before.generation,
        )
        stored = await shelf.contents.put_chunks(packed, keys)
        sealed = await asyncio.to_thread(seal_manifest, stored.manifest, keys)
        digest = sha256(sealed).digest()
        new = msgspec.structs.replace(
            row,
            id=uuid7(),
            kind=stored.manifest.kind,
            codec=codec,
            manifest=keys.manifest_object(row.version, digest),
            manifest_digest=digest,
            state_digest=stored.manifest.state_digest,
            plain_bytes=stored.manifest.plain_bytes,
            stored_bytes=stored.manifest.stored_bytes + len(sealed),
            written_bytes=stored.new_bytes + len(sealed),
            chunks=len(stored.manifest.chunks),
        )
        await shelf.contents.put_manifest(new, sealed, stored.manifest)
        reach("recompress.stored")
        if turn.lost:
            raise Unavailable("this process stood still while it wrote a snapshot", hint="try again", tenant=row.tenant, agent=row.agent)
        replaced = await store.replace_snapshot(row, new)
        reach("recompress.replaced")
        return new if replaced else None
