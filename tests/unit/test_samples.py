"""Samples are real input in shape: seeded, deterministic, conversations with calls that have results."""

from __future__ import annotations

import io
import json

import pytest

from perdure.engine import fold
from perdure.engine.importing import read_conversations, samples

FIRST_ID = "46d28324-92b7-8375-bd7f-e0c9f4311aaa"


def test_the_same_seed_gives_the_same_conversations_and_another_seed_others() -> None:
    first = list(samples.generate(seed=7, agents=9))
    assert first == list(samples.generate(seed=7, agents=9))
    assert first != list(samples.generate(seed=8, agents=9))
    assert len({conversation.agent for conversation in first}) == 9


def test_a_seed_gives_the_same_on_every_machine() -> None:
    first = next(samples.generate(seed=1))
    assert first.agent == "sample/travel-0001"
    assert str(first.events[0].id) == FIRST_ID


def test_more_agents_leave_the_first_ones_as_they_are() -> None:
    assert list(samples.generate(agents=5))[:3] == list(samples.generate(agents=3))


def test_samples_are_read_like_a_file_of_chats() -> None:
    records = list(samples.generate_records(seed=3, agents=6, turns=4))
    stream = io.BytesIO("\n".join(map(json.dumps, records)).encode())
    for record, generated, found in zip(
        records, samples.generate(seed=3, agents=6, turns=4), read_conversations("-", stdin=stream), strict=True
    ):
        document: dict[str, object] = {}
        for event in generated.events:
            document, warnings = fold.apply(document, event.changes)
            assert not warnings
        assert document == record
        assert [event.type for event in generated.events] == [event.type for event in found.events]  # type: ignore[union-attr]


def test_every_call_has_its_result_and_no_template_is_left_open() -> None:
    for record in samples.generate_records(agents=12, turns=8):
        made = [call["id"] for message in record["messages"] for call in message.get("tool_calls", [])]
        answered = [message["tool_call_id"] for message in record["messages"] if message["role"] == "tool"]
        assert made == answered
        assert len(set(made)) == len(made) >= 8
        assert not any("{" in str(message["content"]) for message in record["messages"] if message["role"] in ("user", "system"))


@pytest.mark.parametrize(("agents", "turns"), [(-1, 1), (samples.AGENTS_MAX + 1, 1), (1, -1), (1, samples.TURNS_MAX + 1)])
def test_numbers_beyond_the_limits_are_refused(agents: int, turns: int) -> None:
    with pytest.raises(ValueError, match="agents go up to"):
        next(samples.generate(agents=agents, turns=turns))
