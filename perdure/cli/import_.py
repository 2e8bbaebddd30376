"""perdure import"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, plain
from perdure.client.importer import ImportReport
from perdure.engine.importing import BrokenRecord, Conversation, read_conversations
from perdure.errors import ImportFailed, InvalidInput

__all__ = ["import_", "records"]

Format = Literal["auto", "chat", "tau-bench", "swe-agent", "who-and-when", "events"]


async def import_(
    files: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    format: Format = "auto",
    concurrency: int = 64,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    options: Options = DEFAULTS,
) -> int:
    """Import conversations as agents: every message, action, observation and tool call becomes an event. Importing a file again adds nothing.

    Parameters
    ----------
    files
        Files, folders of files, or `-` for stdin.
    format
        What the files hold; auto looks into each.
    concurrency
        Agents written at once.
    skip_bad
        Go on after a broken record, and count it; without it the first one ends the import with exit code 1.
    """
    if wrong := [name for name in files if name.startswith("-") and name != "-"]:
        raise InvalidInput(f"there is no option {wrong[0]}", hint="perdure import --help")
    async with session(options, create=True) as engine:
        with Progress("importing", quiet=options.json) as progress:
            report = await engine.import_conversations(
                records(files, format),
                tenant=options.tenant_given,
                concurrency=concurrency,
                skip_bad=skip_bad,
                progress=lambda _, events: progress(events),
            )
    facts = plain(report)
    emit(facts, as_json=options.json, text=_summary(report))
    return 0 if skip_bad or not report.broken else ImportFailed.exit_code


def records(files: tuple[str, ...], format: str) -> Iterator[Conversation | BrokenRecord]:
    """The conversations of all files, one after the other, none held longer than needed."""
    for name in files:
        if name == "-":
            # A reader of its own: a process that ends while it waits for stdin shall not wait for the lock of sys.stdin.
            with open(0, "rb", closefd=False) as stdin:
                yield from read_conversations(name, format=format, stdin=stdin)
        else:
            yield from read_conversations(name, format=format)


def _summary(report: ImportReport) -> str:
    first = f"{amount(report.conversations, 'agent')}, {amount(report.events_new, 'event')} new, {count(report.events_known)} known already"
    return "\n".join([first, *(f"broken: {record}" for record in report.broken)])
