"""Changes: what an event does to a state, at a path.

A path is written as a JSON pointer (RFC 6901) and kept as its tokens. Five operations are all there are; the fold gives each of them a result
on every state (`perdure.engine.fold`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import msgspec

from perdure import limits
from perdure.errors import InvalidPath, LimitExceeded

__all__ = ["Change", "Operation", "Path", "append", "delete", "format_path", "insert", "merge", "parse_path", "set_value"]

REMEMBERED_LENGTH_MAX = 256
"""Longer pointers are parsed each time; what is remembered of the others is half a megabyte at most."""
Path = tuple[str, ...]
Operation = Literal["set", "delete", "append", "insert", "merge"]


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One change of a document.

    op: set (value at path), delete (what is at path), append (value to the list at path), insert (value before the list element that path
    names), merge (value at path as an RFC 7396 merge patch). path: tokens from the root; `()` is the whole document.
    """

    op: Operation
    path: Path
    value: Any = None

    @property
    def pointer(self) -> str:
        """The path as a JSON pointer."""
        return format_path(self.path)


def set_value(path: str | Path, value: Any) -> Change:
    """Set the value at a path; parents that are missing are made."""
    return Change("set", parse_path(path), value)


def delete(path: str | Path) -> Change:
    """Delete what is at a path; nothing there is no error."""
    return Change("delete", parse_path(path))


def append(path: str | Path, value: Any) -> Change:
    """Append a value to the list at a path; a missing list is made."""
    return Change("append", parse_path(path), value)


def insert(path: str | Path, value: Any) -> Change:
    """Insert a value before the list element at a path, e.g. `/messages/0`."""
    return Change("insert", parse_path(path), value)


def merge(path: str | Path, value: Any) -> Change:
    """Merge a document into what is at a path, by the rules of RFC 7396 (null deletes)."""
    return Change("merge", parse_path(path), value)


def parse_path(path: str | Path) -> Path:
    """Tokens of a JSON pointer; tuples pass through after the same checks. Raises InvalidPath, LimitExceeded."""
    if isinstance(path, str):
        # A program appends to the same few places over and over.
        return _parse_again(path) if len(path) <= REMEMBERED_LENGTH_MAX else _parse(path)
    tokens = tuple(path) if isinstance(path, tuple | list) else (path,)
    if not all(isinstance(token, str) for token in tokens):
        raise InvalidPath(f"path {path!r} has a token that is not a string")
    return _within_limits(tokens)


def _parse(path: str) -> Path:
    if path and not path.startswith("/"):
        raise InvalidPath(f"path {path!r} does not start with '/'", hint="write a JSON pointer like /messages/0, or '' for the root")
    return _within_limits(tuple(_unescape(token, path) for token in path.split("/")[1:]))


_parse_again = lru_cache(maxsize=2_048)(_parse)


def _within_limits(tokens: Path) -> Path:
    if len(tokens) > limits.PATH_DEPTH_MAX:
        raise LimitExceeded(f"path is {len(tokens)} tokens deep, the limit is {limits.PATH_DEPTH_MAX}")
    if any(len(token) > limits.KEY_LENGTH_MAX for token in tokens):
        raise LimitExceeded(f"a path token is longer than {limits.KEY_LENGTH_MAX} characters")
    return tokens


def format_path(path: Path) -> str:
    """The JSON pointer of a path."""
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def _unescape(token: str, path: str) -> str:
    if "~" in token:
        if "~" in token.replace("~0", "").replace("~1", ""):
            raise InvalidPath(f"path {path!r} has a '~' that is neither ~0 nor ~1")
        token = token.replace("~1", "/").replace("~0", "~")
    return token
