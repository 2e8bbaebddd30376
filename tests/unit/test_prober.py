"""A prober keeps its intended times whatever the agent does, and finds the gap that an outsider saw."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest

from perdure.engine.log.records import AgentName
from perdure.errors import CommandFailed, DeadlineExceeded, InvalidInput, PerdureError
from perdure.identifiers import uuid7
from perdure.recovery.commands import Command, CommandResult
from perdure.testing.prober import Outcome, Prober, Probing, count

ONE, OTHER = AgentName("t", "one"), AgentName("t", "other")
TIMEOUT_S = 60.0


def recorded(*answers: tuple[float, Outcome]) -> Probing:
    probing = Probing(ONE)
    for at_s, (answered_s, outcome) in enumerate(answers):
        number = probing.begin(uuid7(), float(at_s), at_s + 0.25)
        probing.end(number, answered_s, outcome, at_s + 1, 1)
    return probing


def test_the_longest_gap_is_between_accepted_commands_only() -> None:
    yes, no = Outcome.ACCEPTED, Outcome.REFUSED
    probing = recorded((0.5, yes), (1.5, yes), (2.1, no), (7.5, yes), (7.25, yes), (8.0, yes))
    assert probing.longest_gap_s(1.0, 7.9) == 7.25 - 1.5
    assert probing.longest_gap_s(3.0, 4.0) == 7.25 - 1.5
    assert probing.longest_gap_s(0.6, 0.7) == 1.0
    assert probing.longest_gap_s(0.1, 0.7) == math.inf
    assert probing.longest_gap_s(7.9, 8.1) == math.inf


def test_latency_counts_from_the_intended_time_and_lateness_is_the_probers_own() -> None:
    probing = recorded((0.5, Outcome.ACCEPTED), (9.0, Outcome.ACCEPTED), (2.5, Outcome.REFUSED))
    assert probing.latencies_s(0.0, 9.0) == [0.5, 8.0]
    assert probing.latencies_s(1.0, 9.0) == [8.0]
    assert probing.lateness_s(0.0, 9.0) == [0.25, 0.25, 0.25]


def test_what_was_accepted_is_told_as_the_checkers_take_it() -> None:
    probing = recorded((0.5, Outcome.ACCEPTED), (1.5, Outcome.UNKNOWN), (2.5, Outcome.ACCEPTED))
    assert [(told.id, told.version, told.epoch) for told in probing.acknowledged()] == [(probing[0].id, 1, 1), (probing[2].id, 3, 1)]
    assert (len(probing), probing.of(Outcome.UNKNOWN)) == (3, 1)


def test_a_record_comes_whole_out_of_another_process() -> None:
    probing = recorded((0.5, Outcome.ACCEPTED), (1.5, Outcome.UNKNOWN), (2.5, Outcome.REFUSED))
    again = Probing.load(probing.dump())
    assert (again.name, list(again)) == (probing.name, list(probing))


async def test_commands_are_sent_while_others_are_not_answered() -> None:
    away = asyncio.Event()
    waiting: set[AgentName] = set()

    async def send(name: AgentName, command: Command) -> CommandResult:
        if name == ONE:
            waiting.add(name)
            await away.wait()
        return CommandResult(1, 1, 1)

    async with asyncio.timeout(TIMEOUT_S):
        async with Prober(send, {ONE: 500, OTHER: 250}) as prober:
            await prober.accepted(OTHER, 25)
            assert prober.records[ONE].of(Outcome.ACCEPTED) == 0
            assert prober.under_way >= 25
            away.set()
    one, other = prober.records[ONE], prober.records[OTHER]
    intended = [probe.intended_s for probe in one]
    assert [round(later - sooner, 6) for sooner, later in itertools.pairwise(intended)] == [0.002] * (len(one) - 1)
    assert len(one) > len(other) >= 25
    assert one.of(Outcome.ACCEPTED) == len(one)
    assert max(one.latencies_s(0, math.inf)) >= 0.02
    assert prober.under_way == 0


async def test_what_is_due_beyond_the_bound_is_recorded_as_not_sent() -> None:
    away = asyncio.Event()

    async def send(name: AgentName, _command: Command) -> CommandResult:
        if name == ONE:
            await away.wait()
        return CommandResult(1, 1, 1)

    async with asyncio.timeout(TIMEOUT_S), Prober(send, {ONE: 500, OTHER: 500}, in_flight_max=3) as prober:
        await prober.accepted(OTHER, 10)
        waiting = prober.records[ONE].of(Outcome.UNKNOWN)
        away.set()
        await prober.accepted(ONE, 4)
    record = prober.records[ONE]
    assert waiting == 3
    assert record.of(Outcome.NOT_SENT) > 0
    assert record.of(Outcome.NOT_SENT) + record.of(Outcome.ACCEPTED) == len(record)


async def test_every_outcome_is_recorded() -> None:
    answers: list[PerdureError | None] = [CommandFailed("no"), DeadlineExceeded("late"), None]
    sent: list[Command] = []

    async def send(_: AgentName, command: Command) -> CommandResult:
        sent.append(command)
        if problem := answers.pop(0) if answers else None:
            raise problem
        return CommandResult(7, 1, 3)

    async with asyncio.timeout(TIMEOUT_S), Prober(send, {ONE: 1_000}, body="b") as prober:
        await prober.accepted(ONE)
    record = prober.records[ONE]
    assert [probe.outcome for probe in record][:3] == [Outcome.REFUSED, Outcome.UNKNOWN, Outcome.ACCEPTED]
    assert (record[2].version, record[2].epoch, record[2].id) == (7, 3, sent[2].id)
    assert sent[0].body == "b"


async def test_a_fault_of_the_caller_ends_the_prober() -> None:
    async def send(_name: AgentName, _command: Command) -> CommandResult:
        raise KeyError("a slip")

    prober = Prober(send, {ONE: 1_000})
    prober.start()
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(PerdureError):
            await prober.accepted(ONE)
        with pytest.raises(KeyError):
            await prober.stop()


@pytest.mark.parametrize("rates", [{}, {ONE: 0.0}, {ONE: 1e9}])
def test_a_rate_that_is_none_is_refused(rates: dict[AgentName, float]) -> None:
    async def send(_name: AgentName, _command: Command) -> CommandResult:
        return CommandResult(1, 1, 1)

    with pytest.raises(InvalidInput):
        Prober(send, rates)


def test_the_handler_counts_on_from_the_state_it_is_given() -> None:
    (event,) = count({"count": 4}, {"any": "body"})
    assert event.data == {"count": 5}
    assert [(change.path, change.value) for change in event.changes] == [(("count",), 5), (("last",), {"any": "body"})]
