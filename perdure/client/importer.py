"""Conversations into the log: each becomes an agent, in one append, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from perdure.engine.importing.contract import BrokenRecord, Conversation
from perdure.engine.log.contract import AgentName
from perdure.engine.log.expected import ANY, NO_STREAM
from perdure.engine.log.log import EventLog
from perdure.errors import Conflict, InvalidInput
from perdure.limits import EVENTS_PER_APPEND_MAX

__all__ = ["ImportReport", "import_conversations"]

CONCURRENCY_DEFAULT = 32


class ImportReport(msgspec.Struct):
    """What an import did. broken: records that were left out, each `file:line: reason`."""

    conversations: int = 0
    events_new: int = 0
    events_known: int = 0
    broken: list[str] = msgspec.field(default_factory=list)


async def import_conversations(
    log: EventLog,
    records: Iterable[Conversation | BrokenRecord],
    *,
    tenant: str,
    concurrency: int = CONCURRENCY_DEFAULT,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Append conversations; the same ones again add nothing.

    A broken record raises ImportFailed unless `skip_bad`; what was read before it stays. progress(conversations, events) after each.
    """
    report = ImportReport()
    running: set[asyncio.Task[None]] = set()
    agents: set[AgentName] = set()
    turns: dict[AgentName, asyncio.Task[None]] = {}

    async def one(conversation: Conversation, name: AgentName, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])  # batches of one agent keep their order
        try:
            await _append(log, conversation, name, report)
            agents.add(name)
            report.conversations = len(agents)
        except (Conflict, InvalidInput) as problem:
            broken = BrokenRecord(conversation.file, conversation.line, f"agent {conversation.agent!r}: {problem.message}")
            if not skip_bad:
                raise broken.as_error() from problem
            report.broken.append(broken.as_error().message)
        if progress is not None:
            progress(report.conversations, report.events_new + report.events_known)

    try:
        for record in records:
            if isinstance(record, BrokenRecord):
                if not skip_bad:
                    raise record.as_error()
                report.broken.append(record.as_error().message)
                continue
            name = AgentName(record.tenant or tenant, record.agent)
            before = turns.get(name)
            turns[name] = task = asyncio.create_task(one(record, name, None if before is None or before.done() else before))
            running.add(task)
            if len(running) >= concurrency:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                turns = {name: task for name, task in turns.items() if not task.done()}
                for task in done:
                    task.result()
    finally:
        # What was begun is finished, also when another record is broken: an agent is written whole or not at all.
        results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return report


async def _append(log: EventLog, conversation: Conversation, name: AgentName, report: ImportReport) -> None:
    expected = NO_STREAM if conversation.whole else ANY
    if len(conversation.events) > EVENTS_PER_APPEND_MAX:
        raise InvalidInput(f"{len(conversation.events)} events in one conversation, the limit is {EVENTS_PER_APPEND_MAX}")
    done = await log.append_events(name, conversation.events, expected=expected)
    if not done.already and (conversation.type or conversation.labels):
        await log.store.describe_agent(await log.vault.record(*name), type=conversation.type, labels=conversation.labels)
        log.vault.forget(name)
    if done.already:
        report.events_known += len(done.versions)
    else:
        report.events_new += len(done.versions)
