"""`python -m benchmarks list|append|pipeline|snapshot|compression|recovery|replay|backup [--json] [--quick]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import append, backup, bytes, compression, embedded, load, pipeline, recovery, replay, snapshot
from benchmarks.measuring import run
from benchmarks.report import print_report
from benchmarks.settings import Settings

_MODULES: dict[str, Any] = {
    "append": append,
    "pipeline": pipeline,
    "snapshot": snapshot,
    "compression": compression,
    "recovery": recovery,
    "replay": replay,
    "backup": backup,
    "embedded": embedded,
    "bytes": bytes,
    "load": load,
}
BENCHMARKS: dict[str, Callable[[Settings], Awaitable[dict[str, Any]]]] = {name: each.measure for name, each in _MODULES.items()}
KEYS: dict[str, tuple[str, ...]] = {name: each.KEYS for name, each in _MODULES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=["list", *BENCHMARKS])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="within a minute, with shorter measurements")
    parser.add_argument("--root", type=Path, help="folder of the servers (default: as `perdure services`)")
    parser.add_argument("--scale", type=float, default=1.0, help="lengthen or shorten every measurement by this factor")
    parser.add_argument("--no-peers", action="store_true", help="perdure and the limits alone; nothing is installed")
    given = parser.parse_args(arguments)
    if given.benchmark == "list":
        for name, keys in KEYS.items():
            print(f"{name}: {', '.join(keys)}")
        return 0
    settings = Settings(quick=given.quick, root=given.root, scale=given.scale, peers=not given.no_peers)
    print_report(run(BENCHMARKS[given.benchmark](settings)), as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
