"""Documents that many may hold at once, because nobody can change them.

`freeze` gives a value of `ReadOnlyMap` and `ReadOnlyList`. They are a dict and a list: `isinstance`, `==`, indexing, iteration, `json`, msgspec
and msgpack take them for what they are equal to, at the speed of the plain ones. Whatever would change one in place raises `ReadOnly`.

Invariants:

- Below a read-only container there is no container that can be changed. So it can be handed to anybody without a copy.
- `freeze` changes nothing that it is given and keeps none of its containers, but for those that are read-only already: these are shared.
- What makes a copy makes a plain one: `thaw`, `copy.deepcopy` and pickle a whole one; `copy.copy`, `.copy()`, slices, `+`, `|`, `dict(…)` and
  `list(…)` a plain container of what stood in it, read-only further down.

Functions written in C that change any dict or list behind its methods' back (`heapq`, a dict made the namespace of an object, `list.append`
called by its own name) are not held off; Python has no means to (docs/adr/0018-read-only-states.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller
from typing import Any, Final, NoReturn

import msgspec

from perdure.errors import ReadOnly

__all__ = ["Freezing", "ReadOnlyList", "ReadOnlyMap", "footprint", "freeze", "thaw"]

_HINT: Final = (
    "perdure.thaw(value) gives a copy to change, state.copy() one of the whole document; a change of the state itself is an event"
)
_GC_HEADER_BYTES: Final = 16
_size_bytes = methodcaller("__sizeof__")


def _refuse(_self: Any, *_given: Any, **_named: Any) -> NoReturn:
    raise ReadOnly("a state is read-only, and so is everything in it", hint=_HINT)


_refused: Any = _refuse


class ReadOnlyMap(dict[str, Any]):
    """A map of a document that is shared. Made by `freeze`."""

    __slots__ = ()
    __init__ = __setattr__ = __setitem__ = __delitem__ = __ior__ = _refused
    clear = pop = popitem = setdefault = update = _refused

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __deepcopy__(self, _memo: Any) -> dict[str, Any]:
        plain: dict[str, Any] = thaw(self)
        return plain


class ReadOnlyList(list[Any]):
    """A list of a document that is shared. Made by `freeze`."""

    __slots__ = ()
    __init__ = __setattr__ = __setitem__ = __delitem__ = __iadd__ = __imul__ = _refused
    append = clear = extend = insert = pop = remove = reverse = sort = _refused

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.copy(),)

    def __deepcopy__(self, _memo: Any) -> list[Any]:
        plain: list[Any] = thaw(self)
        return plain


_CONTAINERS: Final = frozenset({dict, list, tuple, ReadOnlyMap, ReadOnlyList})
_new_map, _fill_map = ReadOnlyMap.__new__, dict.__init__
_new_list, _fill_list = ReadOnlyList.__new__, list.__init__


class Freezing:
    """Makes values read-only and adds up what they take. size_bytes: of everything new; shared: there was something read-only already, which is
    not in it.

    The sum is not less than what CPython allocates: members' names, which a decoder often shares, count each time."""

    __slots__ = ("shared", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.shared = False

    def value(self, value: Any) -> Any:
        """The value, read-only. Containers are those that a document may hold; a tuple becomes a list."""
        kind = type(value)
        if kind is str:
            self.size_bytes += value.__sizeof__()
            return value
        frozen: Any
        scalars: Iterable[Any]
        if kind is dict:
            scalars, make = value, self.value  # its names, that is
            _fill_map(frozen := _new_map(ReadOnlyMap), {key: make(child) for key, child in value.items()})
        elif kind is list or kind is tuple:
            flat = _CONTAINERS.isdisjoint(map(type, value))  # as a vector is, and quickly done
            scalars = value if flat else ()
            _fill_list(frozen := _new_list(ReadOnlyList), value if flat else [*map(self.value, value)])
        elif kind is ReadOnlyMap or kind is ReadOnlyList:
            self.shared = True
            return value
        else:
            self.size_bytes += value.__sizeof__()
            return value
        self.size_bytes += sum(map(_size_bytes, scalars), frozen.__sizeof__() + _GC_HEADER_BYTES)
        return frozen


def freeze(value: Any) -> Any:
    """An equal value that nobody can change. It costs as much as the value has containers that are not read-only yet."""
    return Freezing().value(value)


def footprint(value: Any) -> int:
    """Bytes that a value takes once it is read-only, as `Freezing` counts them."""
    freezing = Freezing()
    freezing.value(thaw(value))
    return freezing.size_bytes


def thaw(value: Any) -> Any:
    """A copy to change: an equal value of plain dicts and lists that nobody else holds."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))
