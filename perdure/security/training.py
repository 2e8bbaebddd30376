"""Training a compression dictionary from samples: which samples, which size, and when it is not worth it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from perdure import limits
from perdure.errors import InvalidInput
from perdure.security.compression import Dictionary

__all__ = ["train"]

_SIZES_BYTES = (8 * limits.KIB, 16 * limits.KIB, 32 * limits.KIB, 64 * limits.KIB, limits.DICTIONARY_BYTES_MAX)
_SEGMENT_BYTES, _MATCH_BYTES = 1_024, 8
"""The trainer's k and d: found best on tool-calling conversations, and given so that it need not search."""
_HELD_OUT_EVERY = 5
_WORTH_A_STEP = 0.98
"""A larger dictionary must save at least two per cent more: every process digests it and keeps it in memory."""


def train(samples: Sequence[bytes], size_bytes: int | None = None) -> bytes:
    """A dictionary for plaintexts like the samples, at most `limits.DICTIONARY_BYTES_MAX` bytes.

    size_bytes: its size; without one, sizes are compared on samples that were held out. The trained bytes come from all of them.
    Raises InvalidInput when the samples are too few or too small to tell anything.
    """
    total_bytes = sum(map(len, samples))
    if len(samples) < limits.TRAINING_SAMPLES_MIN or total_bytes < limits.TRAINING_BYTES_MIN:
        raise InvalidInput(
            f"{len(samples)} samples of {total_bytes} bytes are too few to train a dictionary",
            hint=f"it takes {limits.TRAINING_SAMPLES_MIN} samples, and {limits.TRAINING_BYTES_MIN} bytes in all",
        )
    chosen = _thin(samples, total_bytes)
    if size_bytes is not None:
        return _train(chosen, size_bytes)
    # A block, not every fifth sample: neighbours come from one conversation and would make any size look good.
    split = len(chosen) - len(chosen) // _HELD_OUT_EVERY
    size = _choose_size(chosen[:split], chosen[split:])
    return _train(chosen, size)


def _thin(samples: Sequence[bytes], total_bytes: int) -> list[bytes]:
    step = max(1, -(-total_bytes // limits.TRAINING_BYTES_MAX))
    # The largest samples would be cut by the trainer anyhow, and one of them could fill the whole budget.
    return [sample[: limits.DICTIONARY_BYTES_MAX] for sample in samples[::step] if sample]


def _choose_size(samples: list[bytes], held_out: list[bytes]) -> int:
    room_bytes = sum(map(len, samples)) // 2
    best_size, best_bytes = _SIZES_BYTES[0], float("inf")
    for size in _SIZES_BYTES:
        if size > room_bytes:
            break
        dictionary = Dictionary(1, _train(samples, size))
        compressed_bytes = sum(min(len(dictionary.compress(sample)), len(sample)) for sample in held_out)
        if compressed_bytes < best_bytes * _WORTH_A_STEP:
            best_size, best_bytes = size, compressed_bytes
    return best_size


def _train(samples: list[bytes], size_bytes: int) -> bytes:
    try:
        return zstandard.train_dictionary(size_bytes, [*samples], k=_SEGMENT_BYTES, d=_MATCH_BYTES, level=3).as_bytes()
    except zstandard.ZstdError as error:
        raise InvalidInput(
            f"no dictionary can be trained from these samples: {error}", hint="hand in more and more different ones"
        ) from error
