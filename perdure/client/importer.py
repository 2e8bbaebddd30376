"""Conversations into the log: each becomes an agent, in one append, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing

import msgspec

from perdure.client.directory import AgentDirectory
from perdure.client.log import Log
from perdure.client.pulling import pull
from perdure.engine.importing.contract import BrokenRecord, Conversation
from perdure.engine.log.expected import ANY, NO_STREAM
from perdure.engine.log.records import AgentName
from perdure.errors import Conflict, InvalidInput
from perdure.limits import EVENTS_PER_APPEND_MAX, IMPORT_CONCURRENCY_MAX

__all__ = ["ImportReport", "import_conversations"]

CONCURRENCY_DEFAULT = 32
TENANT_DEFAULT = "default"


class ImportReport(msgspec.Struct):
    """What an import did. tenants: that it wrote to. broken: records that were left out, each `file:line: reason`."""

    conversations: int = 0
    events_new: int = 0
    events_known: int = 0
    tenants: list[str] = msgspec.field(default_factory=list)
    broken: list[str] = msgspec.field(default_factory=list)


async def import_conversations(
    log: Log,
    directory: AgentDirectory,
    records: Iterable[Conversation | BrokenRecord],
    *,
    tenant: str | None = None,
    concurrency: int = CONCURRENCY_DEFAULT,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Append conversations; the same ones again add nothing.

    tenant: that everything goes into, whatever a record says of its own; None: each into its own, or into `default`. Records of several tenants
    do not go into one: two agents of the same name would become one. A broken record raises ImportFailed unless `skip_bad`; what was read
    before it stays. progress(conversations, events) after each. The records are read in a thread: they may come from a pipe.
    """
    if type(concurrency) is not int or not 1 <= concurrency <= IMPORT_CONCURRENCY_MAX:
        raise InvalidInput(f"concurrency is {concurrency!r:.40}", hint=f"1 to {IMPORT_CONCURRENCY_MAX}")
    importing = _Importing(log, directory, tenant, concurrency, skip_bad, progress)
    try:
        async with aclosing(pull(records)) as arriving:
            async for record in arriving:
                await importing.take(record)
    finally:
        # What was begun is finished, also when another record is broken: an agent is written whole or not at all.
        results = await importing.finish()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return importing.report


class _Importing:
    """One import while it runs: at most `concurrency` appends at once, those of one agent in their order."""

    def __init__(
        self,
        log: Log,
        directory: AgentDirectory,
        tenant: str | None,
        concurrency: int,
        skip_bad: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._log = log
        self._directory = directory
        self._tenant = tenant
        self._concurrency = concurrency
        self._skip_bad = skip_bad
        self._progress = progress
        self.report = ImportReport()
        self._running: set[asyncio.Task[None]] = set()
        self._agents: set[AgentName] = set()
        self._turns: dict[AgentName, asyncio.Task[None]] = {}
        self._tenants_said: set[str] = set()

    async def take(self, record: Conversation | BrokenRecord) -> None:
        """Begin with a record; returns when there is room for the next."""
        if isinstance(record, Conversation) and self._is_of_another(record):
            reason = (
                f"agent {record.agent!r} is of tenant {record.tenant!r}, others of {sorted(self._tenants_said)[0]!r}: not into one tenant"
            )
            record = BrokenRecord(record.file, record.line, f"{reason} (leave the tenant out to keep them apart)")
        if isinstance(record, BrokenRecord):
            if not self._skip_bad:
                raise record.as_error()
            self.report.broken.append(record.as_error().message)
            return
        name = AgentName(self._tenant or record.tenant or TENANT_DEFAULT, record.agent)
        before = self._turns.get(name)
        task = asyncio.create_task(self._import(record, name, None if before is None or before.done() else before))
        self._turns[name] = task
        self._running.add(task)
        if len(self._running) >= self._concurrency:
            done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            self._turns = {name: task for name, task in self._turns.items() if not task.done()}
            for task in done:
                task.result()

    async def finish(self) -> list[BaseException | None]:
        """Wait for what was begun."""
        return await asyncio.gather(*self._running, return_exceptions=True)

    def _is_of_another(self, record: Conversation) -> bool:
        if self._tenant is None or record.tenant is None:
            return False
        self._tenants_said = self._tenants_said or {record.tenant}
        return record.tenant not in self._tenants_said

    async def _import(self, conversation: Conversation, name: AgentName, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])  # batches of one agent keep their order
        try:
            await self._append(conversation, name)
        except (Conflict, InvalidInput) as problem:
            broken = BrokenRecord(conversation.file, conversation.line, f"agent {conversation.agent!r}: {problem.message}")
            if not self._skip_bad:
                raise broken.as_error() from problem
            self.report.broken.append(broken.as_error().message)
        else:
            self._agents.add(name)
            self.report.conversations = len(self._agents)
            if name.tenant not in self.report.tenants:
                self.report.tenants.append(name.tenant)
        if self._progress is not None:
            self._progress(self.report.conversations, self.report.events_new + self.report.events_known)

    async def _append(self, conversation: Conversation, name: AgentName) -> None:
        if len(conversation.events) > EVENTS_PER_APPEND_MAX:
            raise InvalidInput(f"{len(conversation.events)} events in one conversation, the limit is {EVENTS_PER_APPEND_MAX}")
        if conversation.type in self._log.schemas.types:
            # Its schema shall hold from the first event on.
            await self._directory.obtain_type(name, conversation.type)
        done = await self._log.append_events(name, conversation.events, expected=NO_STREAM if conversation.whole else ANY)
        if done.already:
            self.report.events_known += len(done.versions)
            return
        self.report.events_new += len(done.versions)
        if conversation.type or conversation.labels:
            await self._directory.describe(name, type=conversation.type, labels=conversation.labels)
