"""Safeguards: what takes something away needs a yes or another person, once, for exactly what was asked, and leaves a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import perdure
from perdure import config
from perdure.client.approval_rules import OPERATIONS, Approval, digest_of, needed, usable
from perdure.client.approvals import AUDIT, Approvals, acting
from perdure.client.engine import Engine
from perdure.errors import ApprovalRequired, Conflict, Denied, InvalidInput, NotFound

TOLD = {"tenant": "t", "agents": ["a", "b"], "keep_last": 10}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    flags = {"log": f"sqlite:///{tmp_path}/state", "keys": f"file://{tmp_path}/root.key"}
    async with perdure.open(settings=config.load(flags, {}), partitions=2) as engine:
        yield engine


async def do(approvals: Approvals, told: dict[str, Any] = TOLD, operation: str = "events.compact", **how: Any) -> str:
    """Do an operation; its id in the trail."""
    async with approvals.guard(operation, told, **({"actor": "ada"} | how)) as passage:
        passage.outcome["events"] = 3
    return passage.id


async def asked(approvals: Approvals, told: dict[str, Any] = TOLD, **how: Any) -> str:
    """The id of what must be approved."""
    with pytest.raises(ApprovalRequired) as required:
        await do(approvals, told, yes=True, **how)
    return str(required.value.details["approval"])


async def trail(approvals: Approvals) -> list[tuple[str, str]]:
    return [(each.type, each.data["actor"]) for each in reversed(await approvals.audit())]


async def test_a_yes_suffices_by_default_and_the_trail_tells_what_was_done(engine: Engine) -> None:
    approvals = engine.approvals
    with pytest.raises(InvalidInput, match="takes away"):
        await do(approvals)
    assert await do(approvals, dry_run=True) == ""
    assert await approvals.audit() == [], "what was not done left a trace"
    id = await do(approvals, yes=True)
    ended, started = await approvals.audit(id=id)
    assert (started.type, started.data) == ("operation_started", {"operation": "events.compact", "arguments": TOLD, "actor": "ada"})
    assert (ended.type, ended.data) == ("operation_completed", {"operation": "events.compact", "actor": "ada", "events": 3})
    assert await approvals.unfinished() == {}
    state = await engine.agent(AUDIT.agent, tenant=AUDIT.tenant).state()
    assert (state.version, state.document) == (2, {"open": {}})


async def fail(approvals: Approvals, operation: str, told: dict[str, Any], **how: Any) -> None:
    """An operation that breaks off."""
    async with approvals.guard(operation, told, actor="ada", **how) as passage:
        passage.outcome["actions"] = 1
        assert await approvals.unfinished() == {passage.id: (await approvals.audit())[0].data}
        raise ZeroDivisionError("by nothing")


async def test_what_is_under_way_and_what_fails_is_told(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        await fail(engine.approvals, "log.repair", {"backup": "x"}, yes=True)
    failed, started = await engine.approvals.audit()
    assert (started.type, failed.type) == ("operation_started", "operation_failed")
    assert failed.data == {"operation": "log.repair", "actor": "ada", "actions": 1, "problem": "ZeroDivisionError: by nothing"}
    assert await engine.approvals.unfinished() == {}


async def test_an_approval_lets_one_attempt_of_what_was_asked_through(engine: Engine) -> None:
    approvals = engine.approvals
    await approvals.set_policy("events.compact", "approval", actor="boss")
    id = await asked(approvals)
    assert await asked(approvals) == id, "asking again asks for the same"
    (open_,) = await approvals.pending()
    assert (open_.operation, open_.arguments, open_.asked_by, open_.state) == ("events.compact", TOLD, "ada", "open")
    with pytest.raises(Denied, match="not approved"):
        await do(approvals, approval=id)
    with pytest.raises(Denied, match="somebody else"):
        await approvals.approve(id, actor="Ada")
    await approvals.approve(id, actor="bob", reason="looked at it")
    with pytest.raises(Denied, match="approved already"):
        await approvals.approve(id, actor="eve", deny=True)
    # For other arguments, another operation, another person: no.
    with pytest.raises(Denied, match="other arguments"):
        await do(approvals, TOLD | {"keep_last": 9}, approval=id)
    with pytest.raises(Denied, match="another operation"):
        await do(approvals, operation="snapshots.clean", approval=id)
    with pytest.raises(Denied, match="asked for by ada"):
        await do(approvals, approval=id, actor="eve")
    done = await do(approvals, dict(reversed(TOLD.items())), approval=id)
    assert (await approvals.audit(id=done))[1].data["approved_by"] == "bob"
    with pytest.raises(Denied, match="used already"):
        await do(approvals, approval=id, yes=True)
    with pytest.raises(NotFound):
        await do(approvals, approval="none")
    assert await approvals.pending() == []
    assert await asked(approvals) != id
    kinds = [kind for kind, _ in await trail(approvals)]
    assert kinds.count("approval_refused") == 8
    assert [kind for kind in kinds if kind != "approval_refused"] == [
        "approval_policy_set",
        "approval_asked",
        "approval_approved",
        "operation_started",
        "operation_completed",
        "approval_asked",
    ]


async def test_a_failed_attempt_has_used_its_approval_up(engine: Engine) -> None:
    approvals = engine.approvals
    await approvals.set_policy("events.compact", "approval", actor="boss")
    id = await asked(approvals)
    await approvals.approve(id, actor="bob")
    with pytest.raises(ZeroDivisionError):
        await fail(approvals, "events.compact", TOLD, approval=id)
    with pytest.raises(Denied, match="used already"):
        await do(approvals, approval=id)


async def test_two_who_use_one_approval_at_once_do_it_once(engine: Engine) -> None:
    approvals = engine.approvals
    await approvals.set_policy("events.compact", "approval", actor="boss")
    id = await asked(approvals)
    await approvals.approve(id, actor="bob")
    results = await asyncio.gather(*(do(approvals, approval=id) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 1
    assert all(isinstance(result, str | Denied | Conflict) for result in results), results


async def test_an_expired_or_denied_approval_holds_no_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    approvals = engine.approvals
    await approvals.set_policy("events.compact", "approval", actor="boss")
    denied = await asked(approvals)
    await approvals.approve(denied, actor="bob", deny=True)
    with pytest.raises(Denied, match="denied by bob"):
        await do(approvals, approval=denied)
    monkeypatch.setattr("perdure.client.approvals.APPROVAL_S_DEFAULT", -1.0)
    late = await asked(approvals)
    assert await approvals.pending() == []
    with pytest.raises(Denied, match="expired"):
        await approvals.approve(late, actor="bob")
    with pytest.raises(Denied, match="expired"):
        await do(approvals, approval=late)


async def test_asking_for_less_needs_another_person_and_asking_for_more_does_not(engine: Engine) -> None:
    approvals = engine.approvals
    await approvals.set_policy("quarantine.resolve", "yes", actor="ada")
    await approvals.set_policy("events.compact", "approval", actor="ada")
    with pytest.raises(ApprovalRequired) as required:
        await approvals.set_policy("events.compact", "yes", actor="ada", yes=True)
    id = str(required.value.details["approval"])
    for level in ("free", "approval"):
        with pytest.raises(InvalidInput):
            await approvals.set_policy("approvals.loosen", level, actor="ada")
    await approvals.approve(id, actor="bob")
    with pytest.raises(Denied):
        await approvals.set_policy("events.compact", "free", actor="ada", approval=id)
    await approvals.set_policy("events.compact", "yes", actor="ada", approval=id)
    assert needed("events.compact", await approvals.policy()) == "yes"
    with pytest.raises(InvalidInput):
        await approvals.set_policy("no such thing", "yes", actor="ada")


async def test_the_trail_itself_is_not_removed(engine: Engine) -> None:
    with pytest.raises(Denied, match="stay whole"):
        await do(engine.approvals, {"tenant": AUDIT.tenant, "agents": "all"}, yes=True)


def test_an_approval_holds_for_no_other_arguments_whatever_their_order() -> None:
    assert digest_of("a", {"x": 1, "y": [1, 2]}) == digest_of("a", {"y": [1, 2], "x": 1})
    arguments: list[dict[str, Any]] = [{"x": 1}, {"x": "1"}, {"x": 1, "y": None}, {}]
    different = {digest_of(operation, each) for operation in "ab" for each in arguments}
    assert len(different) == 2 * len(arguments)
    digest = digest_of("a", {"x": 1})
    good = Approval("i", "a", {"x": 1}, digest, "ada", 0, 100, "approved", "bob")
    assert usable(good, "a", digest, "ada", 99).state == "used"
    for bad, now_us in ((good, 100), (msgspec.structs.replace(good, state="used"), 1), (msgspec.structs.replace(good, state="open"), 1)):
        with pytest.raises(Denied):
            usable(bad, "a", digest, "ada", now_us)
    with pytest.raises(InvalidInput):
        digest_of("a", {"x": "y" * 100_000})


def test_who_acts_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_ACTOR", "from the environment")
    assert (acting(), acting(" ada ")) == ("from the environment", "ada")
    for bad in ("x\ny", "y" * 300, " "):
        with pytest.raises(InvalidInput):
            acting(bad)
    assert all(each.level in ("free", "yes", "approval") for each in OPERATIONS.values())
