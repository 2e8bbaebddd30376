"""Reads conversations from files, folders and streams, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final

from perdure.engine.importing import chat
from perdure.engine.importing.batches import broken_agents, read_batches
from perdure.engine.importing.contract import FORMATS, BrokenRecord, Conversation, Place
from perdure.engine.importing.detect import convert, detect
from perdure.engine.importing.files import Source, expand
from perdure.engine.importing.naming import short_hash
from perdure.engine.importing.text import decode_text, elements, parse, starts_list
from perdure.errors import ImportFailed, InvalidInput
from perdure.limits import EVENTS_PER_APPEND_MAX

__all__ = ["read_conversations"]

Outcome = Conversation | BrokenRecord
_LINE_SUFFIXES = (".jsonl", ".ndjson")
_LOOK: Final = "look at its name, and whether it may be read"


def read_conversations(path_or_dash: str, *, format: str = "auto", stdin: BinaryIO | None = None) -> Iterator[Outcome]:
    """Read the conversations of a file, of the files of a folder, or of a stream (`-`: stdin, by default the process's own).

    It reads as it goes: one record of the file at a time. What cannot be read comes as a BrokenRecord in its place; nothing is raised for it.
    """
    if format not in FORMATS:
        yield BrokenRecord(path_or_dash, None, f"there is no format {format!r:.40}", hint=f"there are {', '.join(FORMATS)}")
        return
    if path_or_dash == "-":
        stream = stdin if stdin is not None else sys.stdin.buffer
        yield from _guarded(Source(stream, "-", "", "stdin", by_lines=False), format, None)
        return
    try:
        files = expand(Path(path_or_dash))
    except (InvalidInput, OSError, ValueError) as error:
        yield BrokenRecord(path_or_dash, None, _reason(error), hint=_LOOK)
        return
    for file in files:
        yield from _read_file(file, format)


def _read_file(path: Path, format: str) -> Iterator[Outcome]:
    try:
        stream = path.open("rb")
    except (OSError, ValueError) as error:
        yield BrokenRecord(str(path), None, _reason(error), hint=_LOOK)
        return
    with stream:
        yield from _guarded(_source(stream, path), format, path)


def _source(stream: BinaryIO, path: Path) -> Source:
    return Source(stream, str(path), path.absolute().parent.name, path.stem, by_lines=path.suffix in _LINE_SUFFIXES)


def _guarded(source: Source, format: str, path: Path | None) -> Iterator[Outcome]:
    """The outcomes of a source; where it breaks off as a whole, that is the last of them."""
    try:
        yield from _read(source, format, path)
    except (InvalidInput, OSError) as error:
        line = error.details.get("line") if isinstance(error, InvalidInput) else None
        yield BrokenRecord(source.file, line, _reason(error))


def _read(source: Source, format: str, path: Path | None) -> Iterator[Outcome]:
    head = [_value_or_none(line) for line in source.peek(2)]
    if format == "events" or (format == "auto" and any(detect(value) == "events" for value in head)):
        yield from read_batches(source.lines(), source.file, _refused(path))
    elif not head:
        raise ImportFailed("is empty")
    elif source.by_lines or (len(head) == 2 and _are_lines(head)):
        yield from _read_lines(source, format, head)
    else:
        yield from _read_document(source, format)


def _refused(path: Path | None) -> frozenset[tuple[str | None, str]]:
    """The agents that are broken in a file of event lines, found before any of them is handed on. A pipe cannot be read twice."""
    if path is None or not path.is_file():
        return frozenset()
    with path.open("rb") as stream:
        return broken_agents(_source(stream, path).lines())


def _are_lines(head: list[Any]) -> bool:
    """Whether two first lines are JSON lines: each a whole object or list; if the first of them is broken, the second tells."""
    return isinstance(head[0], dict | list) or isinstance(head[1], dict)


def _read_lines(source: Source, format: str, head: list[Any]) -> Iterator[Outcome]:
    if format in ("auto", "chat") and chat.is_message(head[0]):
        # One conversation, a message a line: it is whole or broken.
        messages = [parse(decode_text(line, number), number) for number, line in islice(source.lines(), EVENTS_PER_APPEND_MAX + 1)]
        yield _convert(messages, format, source, Place(source.file, source.folder, _stem(source, messages), 1, 1, True))
        return
    for index, (line_number, line) in enumerate(source.lines(), start=1):
        try:
            record = parse(decode_text(line, line_number), line_number)
        except InvalidInput as error:
            yield BrokenRecord(source.file, line_number, _reason(error))
            continue
        place = Place(source.file, source.folder, _stem(source, record), index, line_number, False)
        yield _convert(record, format, source, place)


def _read_document(source: Source, format: str) -> Iterator[Outcome]:
    content, first_line = source.everything()
    text = decode_text(content, first_line)
    if starts_list(text):
        found = elements(text, first_line)
        first = next(found, None)
        if first is None:
            raise ImportFailed("is an empty list", line=first_line)
        if not chat.is_message(first[0]):
            for index, (record, line) in enumerate(chain([first], found), start=1):
                place = Place(source.file, source.folder, _stem(source, record), index, line, False)
                yield _convert(record, format, source, place)
            return
    record = parse(text, first_line)
    yield _convert(record, format, source, Place(source.file, source.folder, _stem(source, record), 1, first_line, True))


def _convert(record: Any, format: str, source: Source, place: Place) -> Outcome:
    try:
        return convert(record, format, place)
    except (InvalidInput, RecursionError, OverflowError) as error:
        return BrokenRecord(source.file, place.line, _reason(error))


def _stem(source: Source, record: Any) -> str:
    """What a file's agents are named by; what comes from a pipe has no name but its content."""
    return source.stem if source.file != "-" else f"stdin-{short_hash(repr(record).encode('utf-8', 'surrogatepass'))}"


def _value_or_none(line: bytes) -> Any:
    """The value of a line that is a JSON text by itself."""
    try:
        return parse(decode_text(line))
    except InvalidInput:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidInput):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
