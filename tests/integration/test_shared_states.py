"""States that callers share: whatever one of them does, no other sees another state, nor does the engine hold one."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from perdure import Event, append, merge, set_value, thaw
from perdure.client.agent import Agent
from perdure.client.engine import Engine
from perdure.client.state import State
from perdure.engine.digest import canonical, digest
from perdure.engine.readonly import footprint
from perdure.engine.replay import fold_log
from perdure.errors import ReadOnly
from perdure.projections.cache_check import check_cache
from perdure.projections.kept import KeptState

STEPS = 80
PART_BYTES_MAX = 500


def somewhere(chance: random.Random, value: Any) -> Any:
    """A container within a document."""
    while inner := [child for child in (value.values() if isinstance(value, dict) else value) if isinstance(child, dict | list)]:
        if chance.random() < 0.3:
            break
        value = chance.choice(inner)
    return value


def vandalise(chance: random.Random, container: Any) -> None:
    """Change a container in place, one way or another."""
    if isinstance(container, dict):
        ways: list[Callable[[], Any]] = [
            container.clear,
            lambda: container.update(x=1),
            lambda: container.setdefault("vandal", 1),
            lambda: container.pop("last", None),
        ]
    else:
        ways = [
            container.clear,
            lambda: container.sort(key=repr),
            container.reverse,
            lambda: container.append("vandal"),
            lambda: container.extend([1]),
        ]
    chance.choice(ways)()


async def write(chance: random.Random, agent: Agent, held: list[State], number: int) -> None:
    """One event or update, also with parts of states that were read; what was handed in is the caller's, and is changed afterwards."""
    given: dict[str, Any] = {"role": "user", "parts": [{"text": f"{number}"}], "number": number}
    part = somewhere(chance, chance.choice(held).document) if held and chance.random() < 0.3 else given
    part = given if len(canonical(part)) > PART_BYTES_MAX else part
    match chance.randrange(4):
        case 0:
            await agent.append([Event("said", changes=(append("/messages", part), set_value("/last", number)))])
        case 1:
            updated = await agent.update({"notes": {f"{number % 5}": part}, "last": None})
            with pytest.raises(ReadOnly):
                updated.document.clear()
        case 2:
            await agent.update([{"op": "add", "path": "/list", "value": [given]}, {"op": "add", "path": "/list/-", "value": part}])
        case _:
            await agent.append(Event("noted", changes=(merge("/notes", {"0": given, "1": None}), append("/messages", given))))
    vandalise(chance, given["parts"])
    vandalise(chance, given)


async def read(chance: random.Random, engine: Engine, agent: Agent) -> State:
    """A state, in one of the ways there are."""
    match chance.randrange(4):
        case 0:
            return await agent.state()
        case 1:
            return await agent.state(consistency="eventual")
        case 2:
            return await agent.state(at_version=chance.randint(0, await agent.version()))
        case _:
            await engine.state_cache.invalidate([agent.name])
            return await agent.state()


@pytest.mark.parametrize("seed", range(3))
async def test_no_caller_changes_what_another_sees_or_what_is_kept(embedded: Engine, seed: int) -> None:
    chance, agent = random.Random(seed), embedded.agent("shared")
    store, vault, reader = embedded.log.store, embedded.log.vault, embedded.states.reader
    await agent.append(Event("began", changes=(set_value("/messages", [{"role": "system", "parts": []}]), set_value("/notes", {}))))
    held: list[State] = []
    digests: list[bytes] = []
    for number in range(STEPS):
        if chance.random() < 0.4:
            await write(chance, agent, held, number)
        state = await read(chance, embedded, agent)
        held.append(state)
        digests.append(digest(thaw(state.document)))
        victim = chance.choice(held)
        with pytest.raises(ReadOnly):
            vandalise(chance, somewhere(chance, victim.document))
        for own in (victim.copy(), thaw(victim.document), copy.deepcopy(victim.document)):
            vandalise(chance, somewhere(chance, own))
        if number % 10 == 9:
            assert [digest(each.document) for each in held] == digests
            kept = reader.kept.get(agent.name)
            assert isinstance(kept, KeptState)
            folded = await fold_log(store, vault, await vault.record(*agent.name), to_version=kept.token.version)
            assert digest(kept.document) == digest(folded.document)
            assert kept.size_bytes >= footprint(kept.document)
    assert (await agent.state()).document is (await agent.state()).document, "who reads the same version shares it"
    report = await check_cache(store, embedded.cache, vault)
    assert (report.agents, report.missing, report.wrong, report.problems) == (1, 0, 0, [])


async def test_a_later_version_shares_what_is_as_it_was_and_is_measured_as_it_grows(embedded: Engine) -> None:
    agent, kept = embedded.agent("long"), embedded.states.reader.kept
    messages = [{"role": "user", "content": "x" * 100, "number": number} for number in range(2_000)]
    await agent.append(Event("began", changes=(set_value("/messages", messages),)))
    first = await agent.state()
    sizes = []
    for number in range(300):
        await agent.append(Event("said", changes=(append("/messages", {"number": number}),)))
        now = await agent.state()
        assert now.document["messages"][0] is first.document["messages"][0]
        sizes.append(kept.size_bytes)
        assert footprint(now.document) <= kept.size_bytes <= 2 * footprint(now.document)
    assert any(after < before for before, after in itertools.pairwise(sizes)), "it was measured anew"
    assert len(first.document["messages"]) == 2_000
