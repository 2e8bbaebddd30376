"""What a document may hold, and the check of it.

None, bool, int (-2^63 … 2^64-1, what msgpack can carry), finite float, str (encodable as UTF-8), bytes, list or tuple, and dict with str
keys; exactly these types, no subclasses but the read-only ones of `perdure.engine.readonly`. A value is checked before anything is stored, so
that whatever is stored can be read again.

The check runs on every event, so its first pass only says yes or no; the second, which knows paths, runs only to word the error.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from perdure import limits
from perdure.engine.changes import format_path
from perdure.engine.readonly import ReadOnlyList, ReadOnlyMap
from perdure.errors import InvalidEvent, LimitExceeded

__all__ = ["LISTS", "MAPS", "VALUES_MAX", "check_value", "is_acceptable", "is_text"]

MAPS: Final = frozenset({dict, ReadOnlyMap})
"""The types of a map that a document may hold."""
LISTS: Final = frozenset({list, tuple, ReadOnlyList})
"""The types of a list that a document may hold."""
_CONTAINERS: Final = MAPS | LISTS
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1
VALUES_MAX: Final = limits.EVENT_BYTES_MAX
"""Values within one value, counted as often as they are reached: a value takes at least a byte, so more can never fit an event. It also
bounds the work on a value that contains itself, or that refers to one list many times on many levels."""


def check_value(value: Any, what: str = "value", *, depth: int = 0) -> None:
    """Raise unless a document may hold the value.

    what: how the error names the value. depth: how many containers it will stand within. Raises InvalidEvent (a type, a float or a text that
    cannot be kept) and LimitExceeded (nesting, key length, number of values), each with the pointer of the culprit as `details["path"]`.
    """
    if not is_acceptable(value, depth):
        _explain(value, what, depth)


def is_text(value: str) -> bool:
    """Whether a str can be encoded as UTF-8 (it holds no lone surrogates)."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_acceptable(value: Any, depth: int) -> bool:
    """The fast pass: level by level over the containers, so that nothing recurses and depth is the number of rounds."""
    budget = VALUES_MAX
    kind = type(value)
    level = [value] if kind is dict or kind in _CONTAINERS else []
    if not level and not _scan((value,), level):
        return False
    while level:
        depth += 1
        if depth > limits.NESTING_DEPTH_MAX:
            return False
        deeper: list[Any] = []
        for container in level:
            budget -= len(container)
            if budget < 0:
                return False
            if isinstance(container, dict):
                if not _keys_acceptable(container) or not _scan(container.values(), deeper):
                    return False
            elif not _scan(container, deeper):
                return False
        level = deeper
    return True


def _scan(items: Any, containers: list[Any]) -> bool:
    """Check the scalars among the items, collect the containers."""
    for item in items:
        kind = type(item)
        if kind is str:
            if not item.isascii() and not is_text(item):
                return False
        elif kind is dict or kind is list or kind in _CONTAINERS:
            containers.append(item)
        elif kind is int:
            if not INTEGER_MIN <= item <= INTEGER_MAX:
                return False
        elif kind is float:
            if not isfinite(item):
                return False
        elif item is not None and kind is not bool and kind is not bytes:
            return False
    return True


def _keys_acceptable(container: dict[Any, Any]) -> bool:
    longest = limits.KEY_LENGTH_MAX
    for key in container:  # noqa: SIM110 - a loop takes half the time of a generator
        if type(key) is not str or len(key) > longest or not (key.isascii() or is_text(key)):
            return False
    return True


def _explain(value: Any, what: str, depth: int) -> None:
    """The slow pass: find a culprit and raise for it. The budget holds here too: one branch may be endless beside a culprit."""
    budget = VALUES_MAX
    if type(value) not in _CONTAINERS:
        _explain_scalar(value, what, ())
    stack: list[tuple[Any, tuple[str, ...]]] = [(value, ())]
    while stack:
        container, path = stack.pop()
        if depth + len(path) >= limits.NESTING_DEPTH_MAX:
            raise LimitExceeded(
                f"{what} is nested deeper than {limits.NESTING_DEPTH_MAX} levels, or contains itself", path=format_path(path[:8]) + "…"
            )
        budget -= len(container)
        if budget < 0:
            raise LimitExceeded(f"{what} holds more than {VALUES_MAX} values", path="")
        if isinstance(container, dict):
            _explain_keys(container, what, path)
        for key, child in container.items() if isinstance(container, dict) else enumerate(container):
            if type(child) in _CONTAINERS:
                stack.append((child, (*path, str(key))))
            elif not _scan((child,), []):
                _explain_scalar(child, what, (*path, str(key)))


def _explain_scalar(item: Any, what: str, path: tuple[str, ...]) -> None:
    pointer = format_path(path)
    place = f"{what} at {pointer!r}" if path else what
    kind = type(item)
    if item is None or kind is bool or kind is bytes:
        return
    if kind is str:
        if not is_text(item):
            raise InvalidEvent(f"{place} is a text with a lone surrogate, which is not valid UTF-8", path=pointer)
    elif kind is int:
        if not INTEGER_MIN <= item <= INTEGER_MAX:
            raise InvalidEvent(f"{place} is an integer outside -2^63 … 2^64-1", hint="keep such a number as a text", path=pointer)
    elif kind is float:
        if not isfinite(item):
            raise InvalidEvent(f"{place} is {item}, which is not a finite number", hint="use null", path=pointer)
    else:
        raise InvalidEvent(
            f"{place} is of type {kind.__qualname__}",
            hint="a document holds None, bool, int, float, str, bytes, lists and dicts with str keys; convert it first",
            path=pointer,
        )


def _explain_keys(container: dict[Any, Any], what: str, path: tuple[str, ...]) -> None:
    pointer = format_path(path)
    for key in container:
        if type(key) is not str:
            raise InvalidEvent(f"{what} at {pointer!r} has the key {key!r:.80}, which is not a str", path=pointer)
        if len(key) > limits.KEY_LENGTH_MAX:
            raise LimitExceeded(f"{what} at {pointer!r} has a key longer than {limits.KEY_LENGTH_MAX} characters", path=pointer)
        if not is_text(key):
            raise InvalidEvent(f"{what} at {pointer!r} has a key with a lone surrogate, which is not valid UTF-8", path=pointer)
