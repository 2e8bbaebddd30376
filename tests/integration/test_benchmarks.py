"""The benchmarks measure what they promise: every key, nothing else. How fast anything is, no test asserts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import page, results, targets
from benchmarks.__main__ import KEYS, main
from benchmarks.measuring import closed_load, open_load, percentile
from benchmarks.peers.catalogue import OURS, SIDES, SideFacts
from benchmarks.peers.environments import PeerUnavailable
from benchmarks.peers.histogram import Histogram
from benchmarks.settings import Settings
from benchmarks.sides import Beside, Pairs, Side, rounds

HERE = Path(__file__).parent.parent.parent
SMALLEST = "0.05"
NOTHING = {"figures.lost", "figures.doubled"}
"""Of these there must be none."""


async def run_benchmark(*arguments: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks", *arguments),
        cwd=HERE,
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    return output.decode()


def keys_of(report: dict[str, Any]) -> set[str]:
    return {f"{part}.{name}" for part in ("ratios", "figures") for name in report[part]}


@pytest.mark.usefixtures("postgres_url", "redis_url", "kafka_url", "trajectories")
@pytest.mark.parametrize("name", KEYS)
async def test_a_benchmark_prints_its_keys_with_positive_numbers(name: str, services_root: Path) -> None:
    output = await run_benchmark(name, "--quick", "--json", "--no-peers", "--scale", SMALLEST, "--root", str(services_root))
    report = json.loads(output)
    assert keys_of(report) == set(KEYS[name])
    values = {f"{part}.{key}": value for part in ("ratios", "figures") for key, value in report[part].items()}
    # A peer that is not there leaves its cells empty, and a reason; every other cell is filled.
    absent = {key for key, value in values.items() if value is None}
    assert all(any(key.startswith(f"ratios.{peer}") for peer in report["missing"]) for key in absent)
    assert {key: values[key] for key in NOTHING & values.keys()} == dict.fromkeys(NOTHING & values.keys(), 0.0)
    assert all(value > 0 for key, value in values.items() if key not in absent | NOTHING)


async def test_list_names_every_key() -> None:
    output = await run_benchmark("list")
    for keys in KEYS.values():
        for key in keys:
            assert key in output


@pytest.mark.usefixtures("trajectories")
@pytest.mark.parametrize("facts", [OURS["sqlite"], SIDES["raw_sqlite"]], ids=lambda facts: facts.name)
async def test_a_driver_answers_every_request_of_the_protocol(facts: SideFacts, tmp_path: Path) -> None:
    beside = Beside(Settings(), "", tmp_path)
    conversation = next(number for number, messages in enumerate(beside.conversations) if messages)
    async with beside.side(facts) as side:
        assert {"version", "settings"} <= side.about.keys()
        assert await side.ask("streams", callers=2) == {"streams": 4}
        appended = await side.append(2, 0.05, "real")
        assert appended.per_s > 0
        assert appended.latency.total > 0
        stored = await side.ask("store", first=conversation, last=conversation + 1, prefix="kept")
        assert stored["messages"] == len(beside.conversations[conversation])
        assert (await side.load("kept-0", stored["messages"], 0.01)).latency.total > 0
        await side.ask("fill", stream="long", count=30)
        await side.ask("settle")
        written = 4 + appended.latency.total + stored["messages"] + 30
        assert (await side.ask("replay"))["events"] == written
    assert list(tmp_path.iterdir()) == [tmp_path / "payloads.json"]


async def test_a_peer_that_fails_is_a_missing_cell_with_its_reason(tmp_path: Path) -> None:
    beside = Beside(Settings(), "", tmp_path, conversations=[])
    broken = SIDES["raw_sqlite"]._replace(name="broken", limit=False)
    seen: list[str] = []

    async def work(side: Side) -> None:
        await side.ask("streams", callers=1)
        seen.append(side.facts.name)
        await side.load("never-written", 1, 0.01)

    await beside.peers([broken, broken._replace(name="absent", peer="nowhere"), broken._replace(name="again")], work)
    assert seen == ["broken", "again"]
    assert "should hold 1 messages, not 0" in beside.missing["broken"]
    assert beside.missing.keys() == {"broken", "absent", "again"}


async def test_a_failure_of_our_own_is_no_missing_cell(tmp_path: Path) -> None:
    beside = Beside(Settings(), "", tmp_path, conversations=[])
    async with beside.ours("sqlite") as side:
        with pytest.raises(RuntimeError) as caught:
            await side.load("never-written", 1, 0.01)
    assert not isinstance(caught.value, PeerUnavailable)


async def test_pairs_alternate_which_side_is_first() -> None:
    order: list[str] = []

    def runs(name: str, values: list[float]) -> Callable[[], Awaitable[float]]:
        async def one() -> float:
            order.append(name)
            return values.pop(0)

        return one

    pairs = await rounds(3, runs("ours", [10.0, 30.0, 80.0]), runs("theirs", [10.0, 10.0, 20.0]))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert pairs == Pairs(ratio=3.0, least=1.0, most=4.0, ours=30.0, theirs=10.0)


def report_of(**parts: Any) -> dict[str, Any]:
    """A report as it is kept, of two sides of which one is missing."""
    about = {"benchmark": "append", "when": "2030-01-02 03:04 UTC", "quick": True, "scale": 1.0, "figures": {}}
    machine = {"processors": 2, "processor": "fast", "memory_gib": 8, "load_1min": 0.5, "system": "some", "python": "3.11"}
    sides = {name: {"title": name.upper(), "version": "1.2", "settings": {"pool": 32}, "lacks": ["ids"]} for name in ("perdure", "emmett")}
    return about | {"machine": machine, "sides": sides, "missing": {"langgraph": "no network"}} | parts


def test_the_page_tells_targets_losses_and_what_is_missing_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(targets.REASONS, ("append", "ratios.emmett_alone"), raising=False)
    cell = {"ratio": 7.5, "least": 6.0, "most": 9.0, "ours": 7500.0, "theirs": 1000.0}
    latency = {"perdure": {"32": {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 4.0, "max": 5.0}}}
    details = {"beside": {"emmett": {"1": cell, "256": cell}}, "latency_ms": latency}
    ratios = {"emmett": 7.5, "emmett_alone": 0.5, "langgraph": None}
    load = report_of(
        benchmark="load",
        quick=False,
        ratios={},
        details={"lengths": [50], "beside": {"perdure": {"load50_ms": 2.0}, "emmett": {"50": cell}}},
    )
    kept = {"append": report_of(ratios=ratios, details=details), "load": load, "scale": {"failed": "it ended with 1"}}
    for name, report in kept.items():
        results.save(tmp_path / "results", name, report, Settings(quick=name != "load"))
    page.write(tmp_path, results.load_all(tmp_path / "results"))
    text = (tmp_path / "performance.md").read_text()
    assert "the quick form; of load the long one" in text
    assert "| append | `ratios.emmett` | ≥ 10 | 7.5 | **missed** |" in text
    assert "| append | `ratios.emmett_alone` | 0.5 | cause not known yet |" in text
    assert "| EMMETT | 7,500 : 1,000 = **7.5** (6 … 9) | — | 7,500" in text
    assert "Missing: langgraph: no network." in text
    assert "Not measured: it ended with 1." in text
    assert "{{" not in text
    for name in ("append", "latency", "load"):
        assert f"(performance/{name}.svg)" in text
        drawn = ElementTree.parse(tmp_path / "performance" / f"{name}.svg").getroot()
        assert drawn.tag.endswith("svg")


def test_a_failure_takes_the_place_of_a_failure_and_never_of_figures(tmp_path: Path) -> None:
    first, figures, later = {"failed": "it ended with 1"}, report_of(ratios={"emmett": 7.5}), {"failed": "it ended with 2"}
    assert [results.save(tmp_path, "append", each, Settings()) for each in (first, later, figures, first)] == [True, True, True, False]
    assert results.load_all(tmp_path)["append"]["ratios"] == {"emmett": 7.5}
    assert [file.name for file in tmp_path.iterdir()] == ["append.json"]


def test_without_servers_all_ends_with_one_error_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(tmp_path, "append", report_of(ratios={"emmett": 7.5}), Settings())
    before = (tmp_path / "append.json").read_bytes()
    monkeypatch.setenv("PERDURE_SERVICES_POSTGRES_URL", "postgresql://127.0.0.1:1/nobody")
    assert main(["all", "--quick", "--out", str(tmp_path), "--root", str(tmp_path / "servers")]) == 6
    assert (tmp_path / "append.json").read_bytes() == before
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("cannot be had") == 1
    assert "==" not in said.err


def test_a_histogram_keeps_percentiles_to_within_a_hundredth_and_adds_up() -> None:
    values = [0.000_001 * number for number in range(1, 20_001)]
    whole, half, other = Histogram(), Histogram(), Histogram()
    for number, value in enumerate(values):
        whole.add(value)
        (half if number % 2 else other).add(value)
    half.merge(Histogram.decode(json.loads(json.dumps(other.encoded()))))
    assert half.counts == whole.counts
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        assert whole.percentile(share) == pytest.approx(percentile(values, share), rel=0.01)
    assert len(whole.counts) < 2_000


def test_a_percentile_is_the_smallest_value_that_covers_the_share() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.01) == 7


async def test_latency_under_open_load_counts_from_the_intended_time() -> None:
    latch = asyncio.Lock()

    async def one_at_a_time() -> None:
        async with latch:
            await asyncio.sleep(0.01)

    latencies = await open_load(1_000, 0.05, one_at_a_time)
    assert len(latencies) == 50
    # Requests queue behind each other: the last was meant for 49 ms, and ends when 50 have taken 10 ms each.
    assert max(latencies) > 0.4


async def test_closed_load_counts_what_its_callers_finish() -> None:
    done: list[int] = []

    async def work(caller: int) -> None:
        await asyncio.sleep(0.005)
        done.append(caller)

    rate, latencies = await closed_load(4, 0.05, work)
    assert set(done) == {0, 1, 2, 3}
    assert len(latencies) == len(done)
    assert rate > 0
