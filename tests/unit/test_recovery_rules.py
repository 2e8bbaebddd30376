"""Detection, spreading and strategies of recovery: pure rules."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import Event
from perdure.engine.log.records import AgentRecord
from perdure.errors import InvalidInput
from perdure.identifiers import uuid7
from perdure.recovery.commands import Command, events_of
from perdure.recovery.detection import LOOKS_TO_LOSE, Detector
from perdure.recovery.nodes import Node, NodeState, check_node_name
from perdure.recovery.plan import Room, hottest_first, spread
from perdure.recovery.policy import Policy
from perdure.recovery.strategy import KINDS, Failure, FailureReport, select_recovery_strategy, steps_of
from perdure.recovery.timeline import parse_speed


def node(name: str, *, alive: bool) -> NodeState:
    return NodeState(Node(name, "", 10, 1, 0, "0"), alive)


def agent(number: int) -> AgentRecord:
    return AgentRecord("t", f"a{number}", 1, number, 0, "lost", number, "", {}, b"", 0)


def test_a_node_is_lost_only_after_several_looks_in_a_row() -> None:
    detector = Detector()
    for look in range(1, LOOKS_TO_LOSE + 2):
        verdict = detector.look([node("a", alive=False), node("b", alive=True)])
        assert verdict.lost == (("a",) if look == LOOKS_TO_LOSE else ())
        assert verdict.suspected == (("a",) if look < LOOKS_TO_LOSE else ())
    assert detector.lost() == {"a"}
    assert detector.look([node("a", alive=True)]).returned == ("a",)
    assert detector.lost() == set()


@given(st.lists(st.booleans(), max_size=40))
def test_whatever_the_looks_are_only_a_run_of_misses_loses_a_node(looks: list[bool]) -> None:
    detector, run = Detector(), 0
    for alive in looks:
        detector.look([node("a", alive=alive)])
        run = 0 if alive else run + 1
        assert detector.lost() == ({"a"} if run >= LOOKS_TO_LOSE else set())


def test_a_node_that_is_not_told_of_any_more_is_forgotten() -> None:
    detector = Detector()
    for _ in range(LOOKS_TO_LOSE):
        detector.look([node("a", alive=False)])
    detector.look([])
    assert detector.lost() == set()


@given(st.integers(0, 60), st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 20), st.integers(1, 20))))
def test_agents_go_to_the_emptiest_nodes_and_never_above_their_room(count: int, nodes: dict[str, tuple[int, int]]) -> None:
    agents = [agent(number) for number in range(count)]
    rooms = {name: Room(*room) for name, room in nodes.items()}
    given_to, homeless = spread(agents, rooms, "r")
    placed = [each.agent for assignments in given_to.values() for each in assignments]
    assert sorted([*placed, *(each.agent for each in homeless)]) == sorted(each.agent for each in agents)
    for name, assignments in given_to.items():
        assert rooms[name].agents + len(assignments) <= rooms[name].agents_max
    if homeless:
        assert all(room.agents + len(given_to.get(name, [])) >= room.agents_max for name, room in rooms.items())


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_hottest_agents_come_first_and_none_is_left_out(heat: list[int]) -> None:
    agents = [msgspec.structs.replace(agent(number), agent_key=number) for number in range(len(heat))]
    ordered = hottest_first(agents, {number: heat[number] for number in range(len(heat)) if heat[number]})
    assert [heat[each.agent_key] for each in ordered] == sorted(heat, reverse=True)
    assert sorted(each.agent_key for each in ordered) == list(range(len(heat)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", [(), ("b",)])
def test_every_failure_has_a_strategy_with_steps(kind: str, others: tuple[str, ...]) -> None:
    strategy = select_recovery_strategy(FailureReport("t", "a", "n", 1, (Failure(kind, "seen"),), others))  # type: ignore[arg-type]
    assert strategy != "none"
    assert steps_of(strategy)


def test_the_gravest_failure_decides() -> None:
    failures = (Failure("cache_damaged", ""), Failure("node_lost", ""))
    assert select_recovery_strategy(FailureReport("t", "a", "n", 1, failures, ("b",))) == "migrate"
    assert select_recovery_strategy(FailureReport("t", "a", "n", 1, failures, ())) == "restart"
    assert select_recovery_strategy(FailureReport("t", "a", "n", 1, ())) == "none"


def test_the_first_event_of_a_command_has_its_id_and_the_others_ids_of_the_same_time() -> None:
    command = Command("x", uuid7())
    events = events_of(command, [Event("a"), Event("b"), Event("c")])
    assert events[0].id == command.id
    assert len({event.id for event in events}) == 3
    assert {event.id.int >> 80 for event in events} == {command.id.int >> 80}
    assert {event.id.version for event in events} == {7}
    assert [event.id for event in events] == [event.id for event in events_of(command, [Event("a"), Event("b"), Event("c")])]
    assert [event.causation_id for event in events] == [None, command.id, command.id]
    assert isinstance(events[1].id, UUID)
    with pytest.raises(InvalidInput):
        events_of(command, ["no event"])  # type: ignore[list-item]


def test_waits_between_tries_double() -> None:
    assert [Policy(backoff_s=2).wait_s(tries) for tries in (1, 2, 3)] == [2, 4, 8]


@pytest.mark.parametrize(("text", "speed"), [("1x", 1), ("10x", 10), ("0.5", 0.5), ("max", 0)])
def test_speeds(text: str, speed: float) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "x", "-1x", "0x", "fast", "nanx", "infx"])
def test_what_is_no_speed(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_speed(text)


@pytest.mark.parametrize("name", ["", "a/b", "a\n", "x" * 1_000])
def test_what_is_no_name_of_a_node(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_node_name(name)
