"""`python -m benchmarks list|NAME|all [--json] [--quick] [--out DIR]`; `python -m benchmarks.page` makes docs/performance.md of what is kept."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    append,
    backup,
    bytes,
    cache,
    compression,
    embedded,
    growth,
    load,
    migration,
    pipeline,
    recovery,
    replay,
    results,
    scale,
    snapshot,
    transfer,
)
from benchmarks.measuring import run
from benchmarks.report import note, print_report
from benchmarks.settings import Settings
from perdure import services
from perdure.errors import PerdureError

_MODULES: dict[str, Any] = {
    "append": append,
    "pipeline": pipeline,
    "snapshot": snapshot,
    "compression": compression,
    "recovery": recovery,
    "replay": replay,
    "backup": backup,
    "transfer": transfer,
    "embedded": embedded,
    "bytes": bytes,
    "load": load,
    "growth": growth,
    "scale": scale,
    "cache": cache,
    "migration": migration,
}
TIMEOUT_S = {True: 1_200.0, False: 14_400.0}
"""Of one benchmark among all, quick or not: one that hangs must not keep the others from being measured."""
BENCHMARKS: dict[str, Callable[[Settings], Awaitable[dict[str, Any]]]] = {name: each.measure for name, each in _MODULES.items()}
KEYS: dict[str, tuple[str, ...]] = {name: each.KEYS for name, each in _MODULES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark, or one after another, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=["list", "all", *BENCHMARKS])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="with shorter measurements; all of them in about ten minutes")
    parser.add_argument("--root", type=Path, help="folder of the servers (default: as `perdure services`)")
    parser.add_argument("--scale", type=float, default=1.0, help="lengthen or shorten every measurement by this factor")
    parser.add_argument("--no-peers", action="store_true", help="perdure and the limits alone; nothing is installed")
    parser.add_argument("--out", type=Path, help="keep the results in this folder, a JSON file per benchmark")
    given = parser.parse_args(arguments)
    if given.benchmark == "list":
        for name, keys in KEYS.items():
            print(f"{name}: {', '.join(keys)}")
        return 0
    settings = Settings(quick=given.quick, root=given.root, scale=given.scale, peers=not given.no_peers)
    if given.benchmark == "all":
        return _all(settings, given.out, as_json=given.json)
    report = run(BENCHMARKS[given.benchmark](settings))
    if given.out:
        results.save(given.out, given.benchmark, report, settings)
    print_report(report, as_json=given.json)
    return 0


def _all(settings: Settings, folder: Path | None, *, as_json: bool) -> int:
    """Each in a process of its own, so that none runs in what another left behind. One that fails is told, and the others go on; when the servers
    cannot be had, none can, and what was kept of the rest stays."""
    reports: dict[str, Any] = {}
    for name in BENCHMARKS:
        try:
            services.up(root=settings.root)
        except PerdureError as problem:
            note(f"benchmarks: the servers cannot be had, so {name} and what comes after it are not measured: {problem.message}")
            if problem.hint:
                note(f"hint: {problem.hint}")
            return problem.exit_code
        note(f"== {name}")
        began = time.monotonic()
        reports[name] = _one(name, settings)
        note(f"== {name}: {time.monotonic() - began:.0f} s")
        if folder and not results.save(folder, name, reports[name], settings):
            note(f"{name} failed; what was kept of it before stays")
        if not as_json:
            print(f"== {name}", flush=True)
            print_report(reports[name], as_json=False)
    if as_json:
        print(json.dumps(reports, indent=2))
    return int(any("failed" in report for report in reports.values()))


def _one(name: str, settings: Settings) -> dict[str, Any]:
    try:
        done = subprocess.run(_command(name, settings), stdout=subprocess.PIPE, text=True, check=False, timeout=TIMEOUT_S[settings.quick])
    except subprocess.TimeoutExpired as problem:
        return {"failed": f"it did not end in {problem.timeout:.0f} s"}
    report: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"failed": f"it ended with {done.returncode}"}
    return report


def _command(name: str, settings: Settings) -> list[str]:
    command = [sys.executable, "-m", "benchmarks", name, "--json", "--scale", str(settings.scale)]
    command += ["--root", str(settings.root)] if settings.root else []
    return command + ["--quick"] * settings.quick + ["--no-peers"] * (not settings.peers)


if __name__ == "__main__":
    sys.exit(main())
