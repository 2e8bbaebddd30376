"""`python -m benchmarks.peak MEGABYTES`: memory on top of a state while it is packed. A process of its own, so that nothing else is counted."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

from benchmarks.states import conversations, folded, keys_of, large_state
from perdure.snapshots.pack import pack

MB = 1_000_000


def main(size_mb: int) -> None:
    """Build the state, forget how it was built, pack it, print what was found."""
    document = large_state(size_mb * MB, conversations())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, started = _memory("VmRSS"), time.process_time()
    packed = pack(folded(document), keys=keys_of(), created_us=1)
    stored = sum(len(chunk.sealed) for chunk in packed.chunks) + len(packed.sealed_manifest())
    spent_s = time.process_time() - started
    report = {
        "state_mb": size_mb,
        "state_in_memory_mib": round(before),
        "peak_extra_mib": round(_memory("VmHWM") - before, 1),
        "stored_mb": round(stored / MB, 1),
        "chunks": len(packed.manifest.chunks),
        "pack_mb_per_s": round(packed.manifest.plain_bytes / spent_s / MB),
    }
    print(json.dumps(report))


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
