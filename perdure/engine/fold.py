"""The fold: a document after changes. Pure, deterministic, total.

Every valid change has one result on every document, so that no accepted event can ever stop a replay. What may surprise leaves a warning.
The document is always a map. "Missing" below means not there or null; "scalar" is anything but map, list and null.

Parents, for every operation but delete (which does nothing, silently, where its target is not there):

==========================  ============================================================================
on the way there is         result
==========================  ============================================================================
a map or a list             is entered
missing                     a map is made (for the parent of an insert: a list)
a scalar                    is replaced like a missing one, warning
list, token an index        "0" or digits without leading zeros; i < length: that element; i = length or
                            "-": a new element at the end; i > length: the same, warning
list, token not an index    the list is replaced by a map, warning
==========================  ============================================================================

Targets:

==========  ===========================================================================================
set         map: sets the member. list: sets the element, or appends, as above
delete      removes the member or element; later elements move up. Root: the document becomes empty
append      missing: [value]. list: appends. scalar: [scalar, value], warning. map: ignored, warning
insert      list: before that element; at the end where the index is greater, warning. map: sets
merge       RFC 7396: null removes, maps merge, everything else replaces
at root     set and merge with what is not a map, append and insert: ignored, warning
==========  ===========================================================================================

An append to a map is ignored, and does not bury the map in a list, because that could nest a document without bound.

What is read-only (`perdure.engine.readonly`) is never changed, whatever a caller gives away: on the way to a target it is copied, each container
by itself, and everything beside the way stays shared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from perdure.engine.changes import Change, Path, format_path
from perdure.engine.readonly import ReadOnlyMap
from perdure.errors import InvalidEvent

__all__ = ["END", "MISSING", "Fresh", "apply", "fold_into", "is_index", "lookup"]

Fresh = dict[int, Any]
"""Containers that may be mutated, by identity; they are held, so that no identity is used twice."""

END: Final = "-"
"""The path token for the place after a list's last element."""
_FIRST: Final = "0"
_LISTS: Final = (list, tuple)
_CONTAINERS: Final = (dict, list, tuple)
_INDICES: Final = {str(index): index for index in range(1_024)}
"""What most tokens that are a list's index stand for; reading one takes as long as the rest of a change does."""
MISSING: Final = object()
"""What `lookup` returns where nothing is."""


def apply(document: dict[str, Any], changes: Iterable[Change], *, own: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The document after the changes, and the warnings.

    own=False: neither the document nor the values are mutated; the result shares with them what did not change. own=True: the caller gives
    away the document and the values, all of which must be reachable from nowhere else or read-only, and the document is mutated in place.
    """
    warnings: list[str] = []
    if own:
        return fold_into(document, changes, None, warnings), warnings
    document = dict(document)
    return fold_into(document, changes, {id(document): document}, warnings), warnings


def fold_into(document: dict[str, Any], changes: Iterable[Change], fresh: Fresh | None, warnings: list[str]) -> dict[str, Any]:
    """Fold into a document of which `fresh` names the containers that may be mutated (None: all), the document itself among them."""
    if type(document) is ReadOnlyMap:
        document = _remember(dict(document), fresh)
    for change in changes:
        path, operation = change.path, change.op
        depth = len(path)
        # What agents do most: appending to a list of the top level, and setting a member of the root or of what is in it.
        if depth == 1:
            if operation == "append":
                target: Any = document.get(path[0])
                if type(target) is list and (fresh is None or id(target) in fresh):
                    target.append(change.value)
                    continue
            elif operation == "set":
                document[path[0]] = change.value
                continue
        elif depth == 2 and operation == "set":
            target = document.get(path[0])
            if fresh is None or id(target) in fresh:
                kind = type(target)
                if kind is dict:
                    target[path[1]] = change.value
                    continue
                if kind is list and (index := _INDICES.get(path[1], len(target))) < len(target):
                    target[index] = change.value
                    continue
        if path:
            _fold_one(document, change, fresh, warnings)
        else:
            document = _fold_root(document, change, fresh, warnings)
    return document


def is_index(token: str) -> bool:
    """Whether a path token is a list index: "0", or digits without a leading zero."""
    return token.isascii() and token.isdigit() and (token[0] != _FIRST or token == _FIRST)


def lookup(document: Any, path: Path) -> Any:
    """What stands at a path, or MISSING."""
    for token in path:
        if isinstance(document, dict):
            document = document.get(token, MISSING)
        elif isinstance(document, _LISTS) and is_index(token) and int(token) < len(document):
            document = document[int(token)]
        else:
            return MISSING
    return document


def _fold_root(document: dict[str, Any], change: Change, fresh: Fresh | None, warnings: list[str]) -> dict[str, Any]:
    operation, value = change.op, change.value
    if operation == "delete" or (operation == "set" and isinstance(value, dict)):
        document = {} if operation == "delete" else value if fresh is None and type(value) is dict else dict(value)
        _remember(document, fresh)
    elif operation == "merge" and isinstance(value, dict):
        _merge(document, value, fresh)
    else:
        warnings.append(f"{operation} at the root is ignored: the root is always a map")
    return document


def _fold_one(document: dict[str, Any], change: Change, fresh: Fresh | None, warnings: list[str]) -> None:
    operation, path, value = change.op, change.path, change.value
    if operation == "delete":
        if lookup(document, path) is not MISSING:
            container, key = _descend(document, change, fresh, warnings)
            del container[key]
        return
    container, key = _descend(document, change, fresh, warnings)
    if operation == "set":
        _put(container, key, value)
    elif operation == "append":
        _append(container, key, change, fresh, warnings)
    elif operation == "insert":
        if type(container) is list:
            container.insert(key, value)
        else:
            container[key] = value
    elif operation == "merge":
        _merge_at(container, key, value, fresh)
    else:
        raise InvalidEvent(f"a change has the operation {operation!r}")


def _descend(document: dict[str, Any], change: Change, fresh: Fresh | None, warnings: list[str]) -> tuple[Any, Any]:
    """Make the way to a target; return its container, which may be mutated, and its key there: a member name, or an index up to the length."""
    path = change.path
    holder: Any = None
    slot: Any = None
    container: Any = document
    last = len(path) - 1
    for depth, token in enumerate(path):
        key: Any = token
        if type(container) is list:
            key = _element(container, token, change, warnings)
            if key is None:
                container, key = _remember({}, fresh), token
                holder[slot] = container
        if depth == last:
            return container, key
        child = _get(container, key)
        if isinstance(child, _CONTAINERS):
            child = _writable(container, key, child, fresh)
        else:
            if child is not None and child is not MISSING:
                warnings.append(f"{change.op} at {change.pointer!r} replaced a scalar at {format_path(path[: depth + 1])!r}")
            as_list = change.op == "insert" and depth == last - 1 and (path[last] == END or is_index(path[last]))
            child = _remember([] if as_list else {}, fresh)
            _put(container, key, child)
        holder, slot, container = container, key, child
    raise AssertionError("a path of a target has at least one token")


def _element(container: list[Any], token: str, change: Change, warnings: list[str]) -> int | None:
    """The index that a token means in a list, at most its length; None: the token is no index."""
    length = len(container)
    if token == END:
        return length
    if not is_index(token):
        warnings.append(f"{change.op} at {change.pointer!r} replaced a list by a map: {token!r:.40} is no index")
        return None
    index = int(token)
    if index > length:
        warnings.append(f"{change.op} at {change.pointer!r} is beyond the end of a list of {length}, and went to its end")
        return length
    return index


def _append(container: Any, key: Any, change: Change, fresh: Fresh | None, warnings: list[str]) -> None:
    target = _get(container, key)
    if isinstance(target, _LISTS):
        _writable(container, key, target, fresh).append(change.value)
    elif isinstance(target, dict):
        warnings.append(f"append at {change.pointer!r} is ignored: a map is there")
    elif target is MISSING or target is None:
        _put(container, key, _remember([change.value], fresh))
    else:
        warnings.append(f"append at {change.pointer!r} made a list of a scalar")
        container[key] = _remember([target, change.value], fresh)


def _merge_at(container: Any, key: Any, patch: Any, fresh: Fresh | None) -> None:
    if not isinstance(patch, dict):
        _put(container, key, patch)
        return
    target = _get(container, key)
    if isinstance(target, dict):
        target = _writable(container, key, target, fresh)
    else:
        target = _remember({}, fresh)
        _put(container, key, target)
    _merge(target, patch, fresh)


def _merge(target: dict[str, Any], patch: dict[str, Any], fresh: Fresh | None) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            _merge_at(target, key, value, fresh)


def _get(container: Any, key: Any) -> Any:
    if type(container) is dict:
        return container.get(key, MISSING)
    return container[key] if key < len(container) else MISSING


def _put(container: Any, key: Any, value: Any) -> None:
    if type(container) is list and key == len(container):
        container.append(value)
    else:
        container[key] = value


def _writable(container: Any, key: Any, child: Any, fresh: Fresh | None) -> Any:
    """The child of a container, copied into it first when it may not be mutated."""
    if fresh is None:
        if type(child) is dict or type(child) is list:
            return child
    elif id(child) in fresh:
        return child
    # A list's own copy is a plain one too, and takes a fifth of the time that list() takes for what is no exact list.
    copy = _remember(dict(child) if isinstance(child, dict) else child.copy() if isinstance(child, list) else list(child), fresh)
    container[key] = copy
    return copy


def _remember(container: Any, fresh: Fresh | None) -> Any:
    if fresh is not None:
        fresh[id(container)] = container
    return container
