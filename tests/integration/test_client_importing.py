"""Imports at the surface: pipes that wait, tenants that lines name, types that have a schema."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from perdure.client.engine import Engine
from perdure.client.pulling import AHEAD_MAX, pull
from perdure.engine.importing import Conversation, read_conversations
from perdure.engine.importing.samples import generate
from perdure.errors import ImportFailed, InvalidInput
from tests.fix_command import COMMAND, Perdure


def line(agent: str, tenant: str | None = None, number: int = 1) -> dict[str, Any]:
    said = {"agent": agent, "type": "noted", "version": number, "changes": [{"op": "set", "path": "/n", "value": number}]}
    return said if tenant is None else {**said, "tenant": tenant}


def lines(folder: Path, *said: dict[str, Any]) -> str:
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in said))
    return str(path)


async def test_while_a_pipe_waits_everything_else_goes_on(embedded: Engine) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        records = read_conversations("-", format="events", stdin=stream)
        importing = asyncio.create_task(embedded.import_conversations(records))
        pipe.write(json.dumps(line("piped")).encode() + b"\n")
        await embedded.agent("other").update({"a": 1})  # would never return if the loop stood still
        assert (await embedded.agent("other").state()).document == {"a": 1}
        assert not importing.done()
        pipe.close()
        assert (await asyncio.wait_for(importing, 60)).events_new == 1


async def test_reading_ahead_is_bounded_and_ends_with_its_taker() -> None:
    taken = threading.Semaphore(0)
    ended = threading.Event()

    def endless() -> Any:
        try:
            number = 0
            while True:
                taken.release()
                yield number
                number += 1
        finally:
            ended.set()

    source = pull(endless())
    assert [await anext(source) for _ in range(3)] == [0, 1, 2]
    await source.aclose()
    assert await asyncio.to_thread(ended.wait, 20)
    reached = 0
    while taken.acquire(blocking=False):
        reached += 1
    assert reached <= AHEAD_MAX + 5


async def test_what_the_source_raises_arrives() -> None:
    def broken() -> Any:
        yield 1
        raise ImportFailed("broken")

    source = pull(broken())
    assert await anext(source) == 1
    with pytest.raises(ImportFailed):
        await anext(source)


async def test_without_a_tenant_each_line_goes_into_its_own(embedded: Engine, tmp_path: Path) -> None:
    file = lines(tmp_path, line("a", "one"), line("a", "two"), line("a"))
    report = await embedded.import_conversations(read_conversations(file))
    assert (sorted(report.tenants), report.conversations) == (["default", "one", "two"], 3)
    assert await embedded.tenants() == ["default", "one", "two"]


async def test_a_tenant_that_is_given_wins_over_what_lines_say(embedded: Engine, tmp_path: Path) -> None:
    file = lines(tmp_path, line("a", "one"), line("b"), line("a", "one", 2))
    report = await embedded.import_conversations(read_conversations(file), tenant="copy")
    assert (report.tenants, report.events_new) == (["copy"], 3)
    assert await embedded.tenants() == ["copy"]


async def test_agents_of_several_tenants_do_not_become_one(embedded: Engine, tmp_path: Path) -> None:
    file = lines(tmp_path, line("a", "one"), line("a", "two"))
    with pytest.raises(ImportFailed, match="not into one tenant"):
        await embedded.import_conversations(read_conversations(file), tenant="copy")
    report = await embedded.import_conversations(read_conversations(file), tenant="copy", skip_bad=True)
    assert (report.conversations, len(report.broken)) == (1, 1)
    assert (await embedded.agent("a", tenant="copy").state()).version == 1


async def test_a_schema_holds_for_what_is_imported(embedded: Engine) -> None:
    conversation = next(iter(generate(seed=1, agents=1, turns=2)))
    assert conversation.type
    embedded.schemas.register(conversation.type, {"properties": {"messages": {"maxItems": 1}}})
    report = await embedded.import_conversations([conversation], skip_bad=True)
    assert (report.events_new, len(report.broken)) == (0, 1)
    assert "/messages" in report.broken[0]


@pytest.mark.parametrize("concurrency", [0, -1, "many", 10_000])
async def test_a_concurrency_that_makes_no_sense_is_refused(embedded: Engine, concurrency: Any) -> None:
    with pytest.raises(InvalidInput):
        await embedded.import_conversations(list[Conversation](), concurrency=concurrency)


def test_an_import_that_waits_for_a_pipe_can_be_interrupted(perdure_command: Perdure) -> None:
    command = [*COMMAND, "import", "-", "--format", "events"]
    with subprocess.Popen(
        command, cwd=perdure_command.folder, env=perdure_command.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(line("a")).encode() + b"\n" + json.dumps(line("a", number=2)).encode() + b"\n")
        process.stdin.flush()
        log = perdure_command.folder / "perdure-state"
        deadline = threading.Event()
        while not (log / "perdure.db").exists() and not any(log.glob("*")) and process.poll() is None:
            deadline.wait(0.05)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert process.stderr.read() == b""
