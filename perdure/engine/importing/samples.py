"""Sample conversations: tool-calling agents of a customer service and of a software team, made up from a seed.

The same seed gives the same conversations, byte for byte, on every machine and Python. They go through the importer like any file.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Final

from perdure.engine.importing import chat, sample_texts
from perdure.engine.importing.contract import Conversation, Place
from perdure.engine.importing.sample_texts import Scene

__all__ = ["AGENTS_MAX", "TURNS_MAX", "generate", "generate_records"]

AGENTS_MAX: Final = 1_000_000
TURNS_MAX: Final = 2_000
"""Requests of the user in one conversation; each takes two to six messages."""
_FILE: Final = "sample"
_RESULTS_SHOWN_MAX: Final = 4


def generate(*, seed: int = 1, agents: int = 24, turns: int = 6) -> Iterator[Conversation]:
    """Conversations of as many agents, each with as many requests of its user. Raises ValueError above the limits."""
    for number, record in enumerate(generate_records(seed=seed, agents=agents, turns=turns), start=1):
        yield chat.convert(record, Place(_FILE, "", _FILE, number, number, False))


def generate_records(*, seed: int = 1, agents: int = 24, turns: int = 6) -> Iterator[dict[str, Any]]:
    """The same as chat records, `{"id", "task", "messages"}`, as a file of JSON lines would hold them."""
    if not 0 <= agents <= AGENTS_MAX or not 0 <= turns <= TURNS_MAX:
        raise ValueError(f"agents go up to {AGENTS_MAX}, turns up to {TURNS_MAX}")
    for number in range(1, agents + 1):
        yield _record(number, Random(f"{seed}/{number}"), turns)  # noqa: S311 - samples, not secrets


def _record(number: int, random: Random, turns: int) -> dict[str, Any]:
    theme = sample_texts.THEMES[number % len(sample_texts.THEMES)]
    facts = _facts(random)
    messages: list[dict[str, Any]] = [{"role": "system", "content": theme.system}]
    for turn in range(turns):
        messages += _turn(theme.scenes[int(random.random() * len(theme.scenes))], facts, random, first=turn == 0)
    messages.append({"role": "user", "content": _pick(random, sample_texts.FAREWELLS)})
    messages.append({"role": "assistant", "content": _pick(random, sample_texts.GOODBYES)})
    return {"id": f"{theme.name}-{number:04d}", "task": {"theme": theme.name, "customer": facts["name"]}, "messages": messages}


def _turn(scene: Scene, facts: dict[str, str], random: Random, *, first: bool) -> list[dict[str, Any]]:
    """A request of the user, the calls it needs with their results, and the answer."""
    facts.update(_changing(random))
    greeting = _pick(random, sample_texts.GREETINGS) + " " if first else ""
    messages: list[dict[str, Any]] = [{"role": "user", "content": greeting + _pick(random, scene.asks).format_map(facts)}]
    for tool, arguments in scene.calls:
        call_id = f"call_{random.getrandbits(64):016x}"
        function = {"name": tool, "arguments": sample_texts.as_json({name: value.format_map(facts) for name, value in arguments.items()})}
        messages.append(
            {"role": "assistant", "content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]},
        )
        messages.append({"role": "tool", "tool_call_id": call_id, "name": tool, "content": _result(scene, facts, random)})
    messages.append({"role": "assistant", "content": _pick(random, scene.answers).format_map(facts)})
    return messages


def _result(scene: Scene, facts: dict[str, str], random: Random) -> str:
    rows = [{name: value.format_map(facts) for name, value in scene.row.items()}]
    rows += [
        {name: value.format_map(_facts(random)) for name, value in scene.row.items()} for _ in range(random.randrange(_RESULTS_SHOWN_MAX))
    ]
    return sample_texts.as_json({"status": "ok", "found": len(rows), "results": rows})


def _facts(random: Random) -> dict[str, str]:
    first, last = _pick(random, sample_texts.FIRST_NAMES), _pick(random, sample_texts.LAST_NAMES)
    return {"name": f"{first} {last}", "user": f"{first.lower()}_{last.lower()}_{random.randrange(1000, 10000)}", **_changing(random)}


def _changing(random: Random) -> dict[str, str]:
    """Facts that differ from request to request."""
    return {
        "order": f"W{random.randrange(1_000_000, 10_000_000)}",
        "item": _pick(random, sample_texts.ITEMS),
        "city": _pick(random, sample_texts.CITIES),
        "date": f"2031-{random.randrange(1, 13):02d}-{random.randrange(1, 29):02d}",
        "amount": f"{random.randrange(8, 900)}.{random.randrange(100):02d}",
        "file": _pick(random, sample_texts.FILES),
        "test": _pick(random, sample_texts.TESTS),
        "line": str(random.randrange(10, 900)),
        "milliseconds": str(random.randrange(3, 4000)),
    }


def _pick(random: Random, choices: tuple[str, ...]) -> str:
    # Not random.choice: what it draws has changed between versions of Python.
    return choices[int(random.random() * len(choices))]
