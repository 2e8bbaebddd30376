"""What a verification found, in words: one line a place, then what does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from perdure.cli.output import amount, count, size
from perdure.client.verify import VerifyReport
from perdure.client.verify_order import Looked
from perdure.engine.log.records import from_microseconds, rfc3339

__all__ = ["looked_at", "told", "verdict"]

PROBLEMS_SHOWN_MAX: Final = 20
_NOT_COMPARED: Final = "none to compare"


def told(report: VerifyReport) -> str:
    """The whole report."""
    problems = list(islice(_problems(report), PROBLEMS_SHOWN_MAX + 1))
    lines = [_verdict(report), *_places(report), looked_at(report.looked), *problems[:PROBLEMS_SHOWN_MAX]]
    if len(problems) > PROBLEMS_SHOWN_MAX:
        lines.append("  … and more: --json lists them")
    return "\n".join(lines)


def looked_at(looked: Looked) -> str:
    """How much was looked at, and when: two lines."""
    words = f"  looked at  {count(looked.agents)} of {amount(looked.agents_total, 'agent')}"
    words += f", {len(looked.partitions)} of {looked.partitions_total} partitions"
    if looked.sample < 1:
        words += f"; sample {looked.sample:.4g}, seed {looked.seed}"
    words += f"\n  begun      {rfc3339(from_microseconds(looked.started_us))}"
    if looked.resumed:
        words += f", resumed {looked.resumed} times"
    return words + (f", ended {rfc3339(from_microseconds(looked.ended_us))}" if looked.ended_us else ", not ended")


def verdict(ok: bool, damaged: bool, *, whole: bool = True) -> str:
    """What came of it. whole: everything was looked at, no sample."""
    if damaged:
        return "SOMETHING DOES NOT HOLD"
    if not ok:
        return "KEYS ARE MISSING; what could be read holds"
    return "everything holds" if whole else "what was looked at holds"


def _verdict(report: VerifyReport) -> str:
    words = verdict(report.ok, report.damaged, whole=report.looked.sample == 1)
    lag = report.lag
    if lag.relay_events:
        words += f"; the topic is {amount(lag.relay_events, 'event')} behind"
    if lag.cache_agents:
        words += f"; {amount(lag.cache_agents, 'cached state')} behind, by {amount(lag.cache_events, 'event')}"
    return words


def _places(report: VerifyReport) -> Iterator[str]:
    log, topic, cache, snapshots = report.log, report.topic, report.cache, report.snapshots
    unread = f", {amount(log.agents_unread, 'agent')} not opened" if log.agents_unread else ""
    yield f"  log        {amount(log.events, 'event')} of {amount(log.agents, 'agent')}{unread}"
    if topic is None:
        yield f"  topic      {_NOT_COMPARED}"
    else:
        expired = sum(each.expired for each in topic.partitions)
        yield f"  topic      {amount(sum(each.messages for each in topic.partitions), 'message')}" + (
            f", {count(expired)} older ones gone by retention" if expired else ""
        )
    if cache is None:
        yield f"  cache      {_NOT_COMPARED}"
    else:
        yield f"  cache      {count(cache.same)} of {amount(cache.agents, 'state')} the newest, {count(cache.missing)} not cached"
    if snapshots is None:
        yield f"  snapshots  {_NOT_COMPARED}"
    else:
        yield (
            f"  snapshots  {count(snapshots.snapshots)} ({size(snapshots.bytes)}), {count(snapshots.replayed)} compared with the log's fold"
            + (f", {count(snapshots.marked)} known to be damaged" if snapshots.marked else "")
        )


def _problems(report: VerifyReport) -> Iterator[str]:
    yield from (f"  log: {problem}" for problem in report.log.problems)
    yield from (f"  keys: {reason}" for reason in report.log.missing_keys)
    if report.topic is not None:
        yield from (f"  topic: {problem}" for each in report.topic.partitions for problem in each.problems)
    if report.cache is not None:
        for problem in report.cache.problems:
            yield f"  cache: {problem.tenant}/{problem.agent} at version {problem.version}: {problem.reason}"
    if report.snapshots is not None:
        yield from (f"  snapshots: {problem}" for problem in report.snapshots.problems)
