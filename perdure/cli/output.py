"""What commands print: data on stdout, progress on stderr."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from perdure.engine.log.records import rfc3339

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = [
    "Progress",
    "amount",
    "count",
    "cut",
    "emit",
    "emit_line",
    "plain",
    "room",
    "share_saved",
    "size",
    "table",
    "to_json",
]

PLAIN_PROGRESS_INTERVAL_S: Final = 5.0
LAST_COLUMN_LEAST: Final = 40
"""Characters: a time, an id or a number in the last column of a table is never cut."""
_KIB: Final = 1024


def to_json(value: object) -> str:
    """One line of JSON."""
    return msgspec.json.encode(plain(value)).decode()


def emit(value: object, *, as_json: bool, text: str) -> None:
    """Print the result: as one JSON object, or as text for people."""
    print(to_json(value) if as_json else text)


def emit_line(value: object, *, as_json: bool, text: str) -> None:
    """As `emit`, for one of many; it is flushed so that who follows sees it at once."""
    print(to_json(value) if as_json else text, flush=True)


def count(number: float) -> str:
    """12 345, with thin groups for people."""
    return f"{number:,.0f}".replace(",", " ")


def amount(number: float, thing: str) -> str:
    """1 agent, 12 345 agents."""
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def share_saved(share: float) -> str:
    """84%, and `none` where what is stored is larger: what is small costs more to seal than compression saves."""
    return f"{share:.0%}" if share > 0 else "none"


def size(number_bytes: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number_bytes < _KIB or unit == "GiB":
            return f"{number_bytes:.0f} {unit}" if unit == "B" else f"{number_bytes:.1f} {unit}"
        number_bytes /= _KIB
    raise AssertionError("unreachable")


def room(used: int, most: int, least: int = 20) -> int:
    """How many characters the rest of a line may have, of which `used` are taken: on a terminal so many that it is one line, but `least`;
    elsewhere `most`, so that what is piped does not depend on who looks."""
    return max(least, min(most, shutil.get_terminal_size().columns - used)) if sys.stdout.isatty() else most


def cut(text: str, characters: int) -> str:
    """The text, with … where it is longer."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest value; on a terminal the last one ends where the terminal does, unless it is short."""
    lines = [tuple(headings), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    last = room(sum(widths[:-1]) + 2 * len(widths[:-1]), widths[-1], LAST_COLUMN_LEAST)
    lines, widths = [(*line[:-1], cut(line[-1], last)) for line in lines], [*widths[:-1], min(widths[-1], last)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


class Progress:
    """How far long work is, on stderr: a bar on a terminal, now and then a line elsewhere, nothing with --json."""

    def __init__(self, title: str, *, quiet: bool = False, unit: str = "events") -> None:
        self._title, self._unit = title, unit
        self._live: RichProgress | None = None
        self._task: TaskID | None = None
        self._quiet = quiet
        self._next_s = time.monotonic() + PLAIN_PROGRESS_INTERVAL_S
        self._started_s = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,} {task.fields[unit]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._live.add_task(self._title, total=None, unit=self._unit)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, done: int, total: int | None = None) -> None:
        """done of total (None: unknown) are done."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total)
        elif not self._quiet and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PLAIN_PROGRESS_INTERVAL_S
            of = f" of {total}" if total else ""
            print(f"{self._title}: {done}{of} {self._unit}{self._rate(done, total)}", file=sys.stderr, flush=True)
        if self._first is None:
            self._first, self._started_s = done, time.monotonic()

    def _rate(self, done: int, total: int | None) -> str:
        """What comes per second, and about how long the rest will take."""
        per_s = 0.0 if self._first is None else (done - self._first) / max(time.monotonic() - self._started_s, 1e-3)
        if per_s <= 0:
            return ""
        return f", {per_s:.0f} per second" + (f", about {max(0, total - done) / per_s:.0f} s left" if total else "")


def plain(value: object) -> Any:
    """Anything of ours as values that JSON knows; bytes as hexadecimal, times as RFC 3339 in UTC."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
