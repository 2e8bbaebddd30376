"""`python -m benchmarks.page`: docs/performance.md and its plots, from the results that are kept. Nothing in them is written by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots, results
from benchmarks.targets import REASONS, TARGETS

__all__ = ["page", "write"]

DOCS = Path(__file__).parent.parent / "docs"
PLOTS = "performance"
OURS = "perdure"

Reports = Mapping[str, dict[str, Any]]

_HEAD = """# Performance

`make bench` generates this page from the results in `benchmarks/results`; nothing in it is written by hand.

{how}
A ratio compares {ours} result with the other side's: the median of pairs of runs that alternate on the same machine and server, in brackets the
least and the most. Above 1, perdure is faster or smaller. Each side has its own processes, packages and database, the same messages, and the
settings that its documentation recommends for concurrent use. On every side a commit is flushed to disk before it is acknowledged. A limit
(pgbench, COPY, a bare row) is not a product: it shows what the server can do when only a row is stored.

To repeat the measurements: `make bench` (ten minutes), or `python -m benchmarks all --out benchmarks/results && python -m benchmarks.page` for
the long form. `python -m benchmarks list` names all benchmarks and their keys. Peers are installed when first measured, each into its own
environment in the user's cache folder.
"""


def write(folder: Path = DOCS, reports: Reports | None = None) -> None:
    """Make the page and its plots anew."""
    text, drawn = page(results.load_all() if reports is None else reports)
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for old in (folder / PLOTS).glob("*.svg"):
        old.unlink()
    for name, svg in drawn.items():
        (folder / PLOTS / f"{name}.svg").write_text(svg)
    (folder / "performance.md").write_text(text)


def page(reports: Reports) -> tuple[str, dict[str, str]]:
    """The page, and its plots by name."""
    drawn = _plots(reports)
    parts = [_HEAD.format(how=_machine(reports), ours="perdure's"), _targets(reports), _losses(reports), _sides(reports)]
    parts += [part(reports) for part in (_append, _embedded, _bytes, _load)]
    parts += [_plain(name, report) for name, report in reports.items() if name not in ("append", "embedded", "bytes", "load")]
    text = "\n".join(part for part in parts if part)
    for name, svg in drawn.items():
        text = text.replace(f"{{{{{name}}}}}", f"![{_title(svg)}]({PLOTS}/{name}.svg)")
    return text, drawn


def _machine(reports: Reports) -> str:
    found = [report for report in reports.values() if "machine" in report]
    if not found:
        return "No results are kept."
    about = found[0]["machine"]
    postgres: dict[str, Any] = next((each["machine"]["postgres"] for each in found if "postgres" in each["machine"]), {})
    load_1min: float = min(found, key=lambda report: str(report["when"]))["machine"]["load_1min"]
    dates = sorted({report["when"][:10] for report in found})
    rows = {
        "measured": " to ".join(dict.fromkeys((dates[0], dates[-1]))) + f", {_form(reports)}",
        "processors": f"{about['processors']} × {about['processor']}",
        "load average before": f"{load_1min} over one minute",
        "memory": f"{about['memory_gib']} GiB",
        "system": about["system"],
        "Python": about["python"],
        "Postgres": ", ".join(
            [postgres.get("server_version", "?"), *(f"{name}={value}" for name, value in postgres.items() if name != "server_version")]
        ),
    }
    busy = "\nThe machine was busy with other work: rates are too low and latencies too high; only the ratios of pairs are meaningful.\n"
    return _table(("", ""), rows.items()) + (busy if load_1min > about["processors"] else "")


def _form(reports: Reports) -> str:
    """How long the measurements were."""
    long = [name for name, report in reports.items() if not report["quick"]]
    if not long:
        return "the quick form"
    return "the long form" if len(long) == len(reports) else f"the quick form; of {', '.join(long)} the long one"


def _targets(reports: Reports) -> str:
    rows = []
    for target in TARGETS:
        value = _value(reports, target.benchmark, target.key)
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:,g}"
        verdict = "not measured" if value is None else ("met" if target.met(value) else "**missed**")
        rows.append((target.benchmark, f"`{target.key}`", bound, _number(value), verdict))
    return "## Targets\n\n" + _table(("benchmark", "key", "target", "found", ""), rows)


def _losses(reports: Reports) -> str:
    """Every ratio to a peer below 1 and every target that is missed, with the reason."""
    if not reports:
        return ""
    lost: dict[tuple[str, str], float] = {}
    for name in ("append", "embedded", "bytes", "load", "replay"):
        for key, value in reports.get(name, {}).get("ratios", {}).items():
            if key.removesuffix("_alone") in reports[name].get("sides", {}) and value is not None and value < 1:
                lost[name, f"ratios.{key}"] = value
    for target in TARGETS:
        value = _value(reports, target.benchmark, target.key)
        if value is not None and not target.met(value):
            lost[target.benchmark, target.key] = value
    rows = [(name, f"`{key}`", _number(value), REASONS.get((name, key), "cause not known yet")) for (name, key), value in lost.items()]
    found = _table(("benchmark", "key", "found", "why"), rows) if rows else "Nowhere in these results.\n"
    return f"## Where perdure loses\n\n{found}"


def _sides(reports: Reports) -> str:
    sides: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for report in reports.values():
        sides |= report.get("sides", {})
        reasons |= report.get("missing", {})
    rows = []
    for side in sides.values():
        settings = "; ".join(f"{name}: {value}" for name, value in side["settings"].items())
        rows.append((side["title"], side["version"], settings, ", ".join(side["lacks"]) or "—"))
    missing = "".join(f"\nMissing: {name}: {reason}.\n" for name, reason in reasons.items())
    return "## Sides\n\n" + _table(("side", "version", "settings", "lacks"), rows) + missing


def _append(reports: Reports) -> str:
    if not (report := _found(reports, "append")):
        return ""
    loads = ("1", "32", "256", "256 real")
    rows = _pairs(report, loads)
    columns = ("beside", *(f"{load.replace(' real', ', real messages')}" for load in loads))
    text = "## Appends by callers\n\nMessages of 1 KB, and real ones. Each append checks the version that its writer expects,\n"
    text += "if the product supports that.\n\n"
    text += _table(columns, rows) + "\nperdure's appends/s : the other side's, and the ratio.\n\n{{append}}\n\n{{latency}}\n\n"
    latency = report["details"].get("latency_ms", {})
    text += "Latency in milliseconds under closed load, 32 callers:\n\n"
    text += _table(
        ("side", "p50", "p90", "p99", "p99.9", "max"), [(name, *found["32"].values()) for name, found in latency.items() if "32" in found]
    )
    return text + "\n" + _keys(report)


def _embedded(reports: Reports) -> str:
    if not (report := _found(reports, "embedded")):
        return ""
    loads = ("1 real", "1 synthetic", "32 real")
    text = "## Embedded appends\n\nInto a local file, synchronous=FULL on every side. perdure's appends/s : the other side's, and the ratio.\n\n"
    return (
        text
        + _table(("beside", "1 caller, real messages", "1 caller, 1 KB", "32 callers, real"), _pairs(report, loads))
        + "\n"
        + _keys(report)
    )


def _bytes(reports: Reports) -> str:
    if not (report := _found(reports, "bytes")):
        return ""
    details = report["details"]
    text = f"## Bytes on disk\n\n{details['conversations']} real conversations, {details['messages']} messages, "
    text += f"{details['raw_bytes']:,} bytes as JSON,\nwritten message by message; all tables and indexes included.\n\n"
    return text + "{{bytes}}\n\n" + _keys(report)


def _load(reports: Reports) -> str:
    if not (report := _found(reports, "load")):
        return ""
    lengths = [str(length) for length in report["details"]["lengths"]]
    text = "## Loading the newest state\n\nMilliseconds, perdure : the other side, and the ratio. Each read of perdure asks the log for the newest\n"
    text += "version, as `state()` does, and returns all messages, read-only and shared with\n"
    text += "other readers. `figures.own…` adds a plain copy for the caller;\n"
    text += "`figures.cold…` reads from the log, with nothing in memory.\n\n"
    rows = _pairs(report, lengths)
    return text + _table(("beside", *(f"{length} messages" for length in lengths)), rows) + "\n{{load}}\n\n" + _keys(report)


def _plain(name: str, report: dict[str, Any]) -> str:
    if "failed" in report:
        return f"## {name.capitalize()}\n\nNot measured: {report['failed']}.\n"
    plot = "{{growth}}\n\n" if name == "growth" and report["details"].get("curve") else ""
    return f"## {name.capitalize()}\n\n{plot}{_keys(report)}"


def _pairs(report: dict[str, Any], loads: Iterable[str]) -> list[tuple[str, ...]]:
    """A row per peer, a cell per load; a peer that could not be measured has empty cells."""
    beside, titles = report["details"].get("beside", {}), _titles(report)
    names = [name for name in (*beside, *report.get("missing", {})) if not name.startswith(OURS)]
    return [(titles.get(name, name), *(_pair(beside.get(name, {}).get(load)) for load in loads)) for name in dict.fromkeys(names)]


def _pair(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "—"
    return f"{cell['ours']:,.4g} : {cell['theirs']:,.4g} = **{cell['ratio']:.3g}** ({cell['least']:.3g} … {cell['most']:.3g})"


def _keys(report: dict[str, Any]) -> str:
    rows = [(f"`{part}.{name}`", _number(value)) for part in ("ratios", "figures") for name, value in report.get(part, {}).items()]
    return f"<details><summary>All keys, {report['when']}</summary>\n\n{_table(('key', 'value'), rows)}\n</details>\n"


def _plots(reports: Reports) -> dict[str, str]:
    drawn: dict[str, str] = {}
    if report := _found(reports, "append"):
        beside, titles = report["details"].get("beside", {}), _titles(report)
        at_most = {titles[name]: cells["256"]["theirs"] for name, cells in beside.items() if "256" in cells}
        ours = [cells["256"]["ours"] for cells in beside.values() if "256" in cells]
        if ours:
            drawn["append"] = plots.bars("Appends per second of 256 callers", {OURS: sorted(ours)[len(ours) // 2], **at_most})
        latency = report["details"].get("latency_ms", {})
        places = {"p50": 10.0, "p90": 100.0, "p99": 1_000.0, "p99.9": 10_000.0}
        series = {
            titles.get(name, name): [(x, max(found["32"][at], 0.001)) for at, x in places.items()]
            for name, found in latency.items()
            if "32" in found
        }
        if series:
            ticks = {x: name for name, x in places.items()}
            drawn["latency"] = plots.lines("Latency of an append, 32 callers", "percentile", "ms", series, ticks=ticks)
    if report := _found(reports, "bytes"):
        titles = _titles(report)
        shown = {titles.get(name, name): value for name, value in report["details"]["by_raw"].items()}
        drawn["bytes"] = plots.bars("Bytes on disk by bytes of raw JSON", dict(sorted(shown.items(), key=lambda item: item[1])), mark=1.0)
    if report := _found(reports, "load"):
        drawn["load"] = _load_plot(report)
    if (report := _found(reports, "growth")) and report["details"].get("curve"):
        drawn["growth"] = _growth_plot(report)
    return drawn


def _load_plot(report: dict[str, Any]) -> str:
    titles, lengths = _titles(report), report["details"]["lengths"]
    beside = report["details"]["beside"]
    series = {OURS: [(float(length), beside[OURS][f"load{length}_ms"]) for length in lengths]}
    for name, cells in beside.items():
        if not name.startswith(OURS) and not name.endswith("_sqlite"):
            series[titles[name]] = [(float(length), cells[str(length)]["theirs"]) for length in lengths if str(length) in cells]
    ticks = {float(length): f"{length:,}" for length in lengths}
    return plots.lines(
        "Loading the newest state, on Postgres", "messages", "ms", {name: some for name, some in series.items() if some}, ticks=ticks
    )


def _growth_plot(report: dict[str, Any]) -> str:
    curve = report["details"]["curve"]
    series = {name: [(float(events), rate) for events, rate in points] for name, points in curve.items()}
    places = sorted({events for points in curve.values() for events, _ in points})
    return plots.lines(
        "Appends per second as the log grows", "events in the log", "1/s", series, ticks={float(each): f"{each:,}" for each in places}
    )


def _titles(report: dict[str, Any]) -> dict[str, str]:
    return {name: side["title"] for name, side in report.get("sides", {}).items()}


def _found(reports: Reports, name: str) -> dict[str, Any] | None:
    report = reports.get(name)
    return report if report and "failed" not in report else None


def _value(reports: Reports, benchmark: str, key: str) -> float | None:
    part, _, name = key.partition(".")
    value: float | None = reports.get(benchmark, {}).get(part, {}).get(name)
    return value


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"


def _title(svg: str) -> str:
    return svg.partition('aria-label="')[2].partition('"')[0]


def _table(columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder that the page is written to")
    write(parser.parse_args().docs)
    sys.exit(0)
