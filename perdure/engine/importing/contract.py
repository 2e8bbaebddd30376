"""What an import is made of: conversations, and the records that could not become one."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from perdure.engine.event import Event
from perdure.errors import ImportFailed

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_EVENTS_MAX",
    "DOCUMENT_BYTES_MAX",
    "FORMATS",
    "LINE_BYTES_MAX",
    "SUFFIXES",
    "BrokenRecord",
    "Conversation",
    "Place",
]

FORMATS: Final = ("auto", "chat", "tau-bench", "swe-agent", "who-and-when", "events")
SUFFIXES: Final = (".json", ".jsonl", ".ndjson", ".traj")
"""The files of a folder that are read."""

LINE_BYTES_MAX: Final = 256 * 1024 * 1024
"""One line of JSON lines: it is held in memory."""
DOCUMENT_BYTES_MAX: Final = 512 * 1024 * 1024
"""A file that is one JSON document: its text is held in memory, its records one at a time."""
BATCH_EVENTS_MAX: Final = 5_000
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""Event lines that are held, in events and bytes of text, before they are handed on grouped by agent."""


class Place(NamedTuple):
    """Where a record stands. file: as given. folder, stem: the last parts of its name. number: 1, 2, 3 … within the file.

    line: of its first character, from 1. alone: it is the file's only record.
    """

    file: str
    folder: str
    stem: str
    number: int
    line: int
    alone: bool


class Conversation(msgspec.Struct, frozen=True):
    """Events of one agent, in order, ready to be appended in one piece.

    agent: readable, the same for the same file. type: the agent's type. labels: for the directory of agents. file, line: where it was read.
    whole: the events are the agent's life from its first on, so it must not exist yet (or hold just these); otherwise they go to its end.
    tenant: where an event line names one.
    """

    agent: str
    type: str
    labels: dict[str, str]
    events: list[Event]
    line: int | None
    file: str
    whole: bool = True
    tenant: str | None = None


class BrokenRecord(msgspec.Struct, frozen=True):
    """A record that could not be read; nothing of it is handed on. line: from 1, None where no line can be named. reason: one line."""

    file: str
    line: int | None
    reason: str
    hint: str = "mend the record, or go on without it with --skip-bad"

    def as_error(self) -> ImportFailed:
        """The same as an error to raise."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ImportFailed(f"{where}: {self.reason}", hint=self.hint, file=self.file, line=self.line)
