"""Strict JSON: what cannot be kept exactly is refused, with line and column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from perdure.errors import ImportFailed

__all__ = ["decode_text", "elements", "parse", "starts_list"]

_SPACE: Final = " \t\r\n"


def parse(text: str, line: int = 1) -> Any:
    """The value of a JSON text that begins at a line of its file. Raises ImportFailed, with `details["line"]`."""
    try:
        return _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise _failure(error, text, line) from None


def decode_text(content: bytes, line: int = 1) -> str:
    """UTF-8 text, without a byte order mark. Raises ImportFailed."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        column = error.start - before.rfind(b"\n")
        at = line + before.count(b"\n")
        hint = " (compressed? decompress it first)" if content[:2] == b"\x1f\x8b" or content[:4] == b"\x28\xb5\x2f\xfd" else ""
        raise ImportFailed(f"not UTF-8 text: byte 0x{content[error.start]:02x} at line {at} column {column}{hint}", line=at) from None


def starts_list(text: str) -> bool:
    """Whether a JSON text is a list."""
    return text.lstrip(_SPACE)[:1] == "[" if text[:1] in _SPACE else text[:1] == "["


def elements(text: str, first_line: int = 1) -> Iterator[tuple[Any, int]]:
    """The elements of a JSON list one by one, each with its line; first_line: of the text. Raises ImportFailed where the text breaks off."""
    position = _skip(text, _skip(text, 0) + 1)
    line, counted = first_line, 0
    first = True
    while text[position : position + 1] != "]" or not first:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _failure(error, text, first_line, line) from None
        yield value, line
        first = False
        position = _skip(text, position)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise _failure(json.JSONDecodeError("Expecting ',' delimiter", text, position), text, first_line)
        position = _skip(text, position + 1)
    rest = _skip(text, position + 1)
    if rest != len(text):
        raise _failure(json.JSONDecodeError("Extra data", text, rest), text, first_line)


def _skip(text: str, position: int) -> int:
    """The position of the next character that is no white space."""
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _failure(error: Exception, text: str, line: int, near: int | None = None) -> ImportFailed:
    """What json says as one line. line: of the text's first character. near: the line to name where the error names none."""
    if isinstance(error, json.JSONDecodeError):
        at = line + error.lineno - 1
        ended = error.pos >= len(text.rstrip(_SPACE)) or error.msg.startswith("Unterminated")
        cut = " (the text ends here: was it cut off?)" if ended else ""
        return ImportFailed(f"not JSON: {error.msg.removesuffix(' starting at')} at line {at} column {error.colno}{cut}", line=at)
    reason = "nested too deep" if isinstance(error, RecursionError) else str(error).split(";")[0]
    return ImportFailed(f"not usable as JSON: {reason}", line=near or line)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the member {twice!r:.80} stands twice in one object")
    return members


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


_decoder: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
