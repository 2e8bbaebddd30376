"""What migrations of a log took: a moving mean, kept in a control document, from which the next ones are estimated."""

from __future__ import annotations

from typing import Final

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.migration.records import Migration

__all__ = ["Rates", "note_rates", "read_rates"]

SCOPE: Final = "migration-rates"
NAME: Final = "all"
WEIGHT_MIN: Final = 0.05


class Rates(msgspec.Struct, frozen=True):
    """Bytes and events a second of copying, and milliseconds of downtime. measured: how many migrations they come from; 0: guesses."""

    bytes_per_s: float = 50e6
    events_per_s: float = 20_000.0
    downtime_ms: float = 5.0
    measured: int = 0

    def after(self, migration: Migration) -> Rates:
        """With one more migration taken into account."""
        weight = max(1 / (self.measured + 1), WEIGHT_MIN)

        def mean(before: float, now: float) -> float:
            return before * (1 - weight) + now * weight

        return Rates(
            mean(self.bytes_per_s, migration.bytes / migration.copy_s),
            mean(self.events_per_s, max(migration.events, 1) / migration.copy_s),
            mean(self.downtime_ms, migration.downtime_target_ms),
            self.measured + 1,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Rates).decode


async def read_rates(store: LogStore) -> Rates:
    """The rates so far; guesses where nothing was measured."""
    document = await store.get_document(SCOPE, NAME)
    return _decode(document.value) if document else Rates()


async def note_rates(store: LogStore, migration: Migration) -> None:
    """Take a completed migration into account. Where another does so at the same moment, this one is left out: a mean can bear that."""
    document = await store.get_document(SCOPE, NAME)
    rates = _decode(document.value) if document else Rates()
    await store.put_document(SCOPE, NAME, _encode(rates.after(migration)), expected=document.revision if document else 0)
