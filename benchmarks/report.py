"""How results are printed, and on which machine they were found."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, Protocol

import psycopg

__all__ = ["Compared", "machine", "note", "print_report", "shape"]


def note(text: str) -> None:
    """Say on stderr what is measured now."""
    print(text, file=sys.stderr, flush=True)


class Compared(Protocol):
    """What a comparison tells besides figures. missing: the reason by side. about: version, settings and what it lacks by side."""

    missing: dict[str, str]
    about: dict[str, Any]


def shape(
    found: dict[str, float], keys: tuple[str, ...], details: dict[str, Any], about: dict[str, Any], compared: Compared | None = None
) -> dict[str, Any]:
    """`ratios` and `figures` with exactly the keys (`ratios.x`, `figures.y`), and beside them details and the machine.

    A key of a peer that could not be measured is None; `missing` has the reason.
    """
    missing = compared.missing if compared else {}
    absent = {key for key in keys if key not in found and any(_is_of(key, name) for name in missing)}
    if wrong := set(keys) ^ found.keys() ^ absent:
        raise AssertionError(f"measured something else than promised: {sorted(wrong)}")
    report: dict[str, Any] = {"ratios": {}, "figures": {}}
    for key in keys:
        part, _, name = key.partition(".")
        report[part][name] = None if key in absent else float(f"{found[key]:.4g}")
    beside = {"sides": compared.about, "missing": missing} if compared else {}
    return report | {"details": details, "machine": about} | beside


def _is_of(key: str, name: str) -> bool:
    """Whether a key is of a side: the ratio to it, or `NAME_more`."""
    own = key.partition(".")[2]
    return own == name or own.startswith(f"{name}_")


def machine(postgres_url: str = "") -> dict[str, Any]:
    """What the figures depend on: processors, memory, versions, and, where Postgres was used, the settings that make a commit durable."""
    about = {
        "processors": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return about | ({"postgres": _postgres(postgres_url)} if postgres_url else {})


def _postgres(url: str) -> dict[str, Any]:
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
    with psycopg.connect(url) as connection:
        settings = {name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in names}
    return {name: value[0] if value else None for name, value in settings.items()}


def print_report(report: dict[str, Any], *, as_json: bool) -> None:
    """One JSON object, or a line per key."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for part in ("failed", "ratios", "figures"):
        if part == "failed" and part in report:
            print(report[part])
            return
        for name, value in report.get(part, {}).items():
            print(f"{part}.{name:<32}" + ("     missing" if value is None else f"{value:>12,.4g}"))
    for name, value in report["details"].items():
        print(f"  {name}: {value}")
    for name, reason in report.get("missing", {}).items():
        print(f"  missing {name}: {reason}")


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
