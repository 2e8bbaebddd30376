"""A fair share of the partitions: processes that do the same work divide it by leases of the log's store.

Each counts the living members and holds at most its share; a partition that it loses to another, it stops to work on. Work that is divided so
must bear that two processes do it for a moment: a lease that is lost is noticed at the next renewal.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import time
from typing import Final
from uuid import uuid4

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Lease
from perdure.errors import Unavailable

__all__ = ["RENEW_INTERVAL_S", "PartitionShare"]

LEASE_DURATION_S: Final = 6.0
RENEW_INTERVAL_S: Final = LEASE_DURATION_S / 3

_log = logging.getLogger(__name__)


class PartitionShare:
    """The partitions that one process works on. work: names the leases, `work/partition` and `work-member/holder`."""

    def __init__(self, store: LogStore, work: str) -> None:
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._store = store
        self._work = work
        self._leases: dict[int, Lease] = {}
        self._until_s = 0.0

    @property
    def owned(self) -> list[int]:
        """The partitions that are ours now; none when the leases were not renewed in time."""
        return sorted(self._leases) if time.monotonic() < self._until_s else []

    async def tend(self) -> None:
        """Renew, give back what is above the fair share, take what is free below it."""
        asked_s = time.monotonic()
        if asked_s >= self._until_s:
            self._leases.clear()
        await self._store.acquire_lease(f"{self._work}-member/{self.holder}", self.holder, LEASE_DURATION_S)
        for partition in list(self._leases):
            await self._take(partition)
        members = len(await self._store.list_leases(f"{self._work}-member/"))
        share = math.ceil(self._store.partitions / max(1, members))
        for partition in sorted(self._leases)[share:]:
            await self._store.release_lease(self._leases.pop(partition))
        await self._take_free(share)
        self._until_s = asked_s + LEASE_DURATION_S

    async def _take_free(self, share: int) -> None:
        taken = {int(lease.name.rpartition("/")[2]) for lease in await self._store.list_leases(f"{self._work}/")}
        free = [partition for partition in range(self._store.partitions) if partition not in taken and partition not in self._leases]
        random.shuffle(free)  # so that processes that start together do not ask for the same one
        for partition in free[: max(0, share - len(self._leases))]:
            await self._take(partition)

    async def _take(self, partition: int) -> None:
        lease = await self._store.acquire_lease(f"{self._work}/{partition}", self.holder, LEASE_DURATION_S)
        known = self._leases.pop(partition, None)
        # Another epoch: somebody else had it in between, so what is remembered of it may be old.
        if lease is not None and (known is None or known.epoch == lease.epoch):
            self._leases[partition] = lease

    async def give_back(self) -> None:
        """Let others in at once; where the log is away, they come in when the leases run out."""
        self._until_s = 0.0
        try:
            while self._leases:
                await self._store.release_lease(self._leases.popitem()[1])
            for lease in await self._store.list_leases(f"{self._work}-member/{self.holder}"):
                await self._store.release_lease(lease)
        except Unavailable as problem:
            _log.warning("leases could not be given back, they expire by themselves: %s", problem)
