"""perdure backup create | list | status | verify | restore | drill | prune"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.chosen import ApprovalId
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, emit_line, plain, size, table
from perdure.cli.run import stop_signals
from perdure.config import masked
from perdure.engine.log.records import from_microseconds, rfc3339
from perdure.errors import InvalidInput
from perdure.recovery.backup.manifest import BackupManifest

__all__ = ["app"]

app = App(name="backup", help="Backups: create, list, status, verify, restore, drill, prune.")

_FAILED, _INTEGRITY = 1, 5
To = Annotated[str, Parameter(help="Where backups are kept: file:///FOLDER or s3://BUCKET/PREFIX.", env_var="PERDURE_BACKUP")]
Id = Annotated[str, Parameter(help="Id of a backup, or latest.")]


@app.command
async def create(
    *,
    to: To,
    every: Annotated[float | None, Parameter(help="Take one every so many seconds until it is told to end.")] = None,
    options: Options = DEFAULTS,
) -> None:
    """Back up what is new since the last backup."""
    async with session(options) as engine:
        if every is None:
            with Progress("backup", quiet=options.json) as progress:
                _tell(await engine.backups.create(to, progress), options)
            return
        if every <= 0:
            raise InvalidInput(f"--every {every:g}", hint="seconds, above 0")
        with stop_signals() as stop:
            await engine.backups.keep_taking(to, every, stop, lambda done: _told(done, options, stop))


def _told(done: BackupManifest | Exception, options: Options, stop: asyncio.Event) -> None:
    if isinstance(done, BackupManifest):
        _tell(done, options)
    elif getattr(done, "retryable", False):
        print(f"perdure: no backup was taken: {done}", file=sys.stderr, flush=True)
    else:
        stop.set()
        raise done


def _tell(manifest: BackupManifest, options: Options) -> None:
    facts = {
        "id": manifest.id,
        "created": rfc3339(from_microseconds(manifest.created_us)),
        "events": manifest.events,
        "stored_bytes": manifest.stored_bytes,
        "written_bytes": manifest.written_bytes,
        "previous": manifest.previous,
    }
    text = f"backup {manifest.id}: {amount(manifest.events, 'event')}, {size(manifest.written_bytes)} written; unproven until `perdure backup drill`"
    emit_line(facts, as_json=options.json, text=text)


@app.command(name="list")
async def list_(*, to: To, options: Options = DEFAULTS) -> None:
    """Backups, newest first."""
    async with session(options) as engine:
        found = await engine.backups.list(to)
    rows = [
        (
            each.id,
            rfc3339(from_microseconds(each.created_us)),
            count(each.events),
            size(each.stored_bytes),
            "proven" if each.proven else "unproven",
        )
        for each in found
    ]
    text = table(("BACKUP", "TAKEN", "EVENTS", "SIZE", "STATE"), rows) if rows else "there is no backup"
    emit({"backups": plain(found)}, as_json=options.json, text=text)


@app.command
async def status(*, to: To, options: Options = DEFAULTS) -> int:
    """What would be lost if the log were lost now. Exit code 1 if that is too much."""
    async with session(options) as engine:
        fresh = await engine.backups.freshness(to)
    age = "there is no backup" if fresh.lag_s is None else f"the newest backup is {fresh.lag_s:.0f} s old"
    proven = "" if fresh.lag_s is None else (", unproven" if fresh.unproven else ", proven")
    lost = (
        f"in no backup: {amount(fresh.lag_events, 'event')} of the last {fresh.rpo_s:.0f} s" if fresh.lag_events else "every event is in it"
    )
    ahead = f"; it has {amount(fresh.ahead_events, 'event')} that the log does not: see `recover promote`" if fresh.ahead_events else ""
    text = f"{age}{proven}; {lost}{ahead}{'  ALARM' if fresh.alarm else ''}"
    emit(plain(fresh), as_json=options.json, text=text)
    return _FAILED if fresh.alarm else 0


@app.command
async def verify(id: Id = "latest", /, *, to: To, options: Options = DEFAULTS) -> int:
    """Read a whole backup and check every object, offset and chain."""
    async with session(options) as engine:
        with Progress("verify", quiet=options.json) as progress:
            done = await engine.backups.verify(to, id, progress)
    says = "whole" if done.ok else "DAMAGED"
    lines = [
        f"backup {done.id} is {says}: {amount(done.events, 'event')} of {amount(done.agents, 'agent')} in {amount(done.objects, 'object')}"
    ]
    emit(plain(done), as_json=options.json, text="\n".join([*lines, *(f"  {problem}" for problem in done.problems)]))
    return 0 if done.ok else _INTEGRITY


@app.command
async def restore(
    id: Id = "latest",
    /,
    *,
    to: To,
    into: Annotated[str, Parameter(help="URL of the log to make: sqlite:///FOLDER or postgresql://…; it must be empty.")],
    to_time: Annotated[datetime | None, Parameter(help="Only what the log had at this moment (with a time zone).")] = None,
    options: Options = DEFAULTS,
) -> None:
    """Restore to a new location; the live log is never touched. --keys names the root key."""
    from perdure.client.backups import restore_backup
    from perdure.config import load

    keys = str(options.settings().keys.value)
    with Progress("restore", quiet=options.json) as progress:
        done = await restore_backup(to, load({"log": into, "keys": keys}), id=id, to_time=to_time, progress=progress)
    text = f"restored {amount(done.events, 'event')} of {amount(done.agents, 'agent')} into {into}, generation {done.generation}"
    text += " (gone on with)" if done.resumed else ""
    looked_for = str(load({"log": into}).keys.value)
    if looked_for != keys:
        text += f"\nits root key is {masked(keys)}: open it with --keys, or copy the key to {masked(looked_for)}"
    emit({**plain(done), "into": into, "keys": masked(keys)}, as_json=options.json, text=text)


@app.command
async def drill(
    id: Id = "latest",
    /,
    *,
    to: To,
    fraction: Annotated[float, Parameter(help="Part of the agents to compare, 0 to 1.")] = 1.0,
    scratch: Annotated[str | None, Parameter(help="URL of an empty log to restore into, kept [default: a temporary folder].")] = None,
    options: Options = DEFAULTS,
) -> int:
    """Restore to a scratch location, compare with the live log, and mark the backup proven."""
    if not 0 < fraction <= 1:
        raise InvalidInput(f"--fraction {fraction:g}", hint="above 0, up to 1")
    async with session(options) as engine:
        with Progress("drill", quiet=options.json, unit="agents") as progress:
            done = await engine.backups.drill(to, id, fraction=fraction, scratch=scratch, progress=progress)
    says = "proven" if done.ok else "NOT PROVEN"
    text = (
        f"backup {done.backup} is {says}: {amount(done.events, 'event')} restored in {done.restore_s:.1f} s, "
        f"{count(done.compared)} of {amount(done.agents, 'agent')} compared in {done.compare_s:.1f} s"
    )
    emit(plain(done), as_json=options.json, text="\n".join([text, *(f"  {problem}" for problem in done.problems)]))
    return 0 if done.ok else _INTEGRITY


@app.command
async def prune(
    *,
    to: To,
    keep: Annotated[int, Parameter(help="How many of the newest stay; the newest proven one always does.")],
    yes: Annotated[bool, Parameter(help="Do it.", negative=())] = False,
    dry_run: Annotated[bool, Parameter(help="Say what would go.", negative=())] = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> None:
    """Remove old backups and objects that nothing needs any more."""
    if (yes or approval is not None) == dry_run:
        raise InvalidInput("prune takes backups away", hint="give --dry-run to see which, --yes to do it")
    async with session(options) as engine:
        told = {"to": masked(to), "keep": keep}
        async with engine.approvals.guard("backups.prune", told, yes=yes, approval=approval, dry_run=dry_run) as passage:
            done = await engine.backups.prune(to, keep=keep, dry_run=dry_run)
            passage.outcome = {"backups": list(done.backups), "objects": done.objects, "bytes": done.bytes}
    verb = "would go" if done.dry_run else "are gone"
    text = f"{amount(len(done.backups), 'backup')} and {amount(done.objects, 'object')} ({size(done.bytes)}) {verb}"
    emit(plain(done), as_json=options.json, text="\n".join([text, *(f"  {id}" for id in done.backups)]))
