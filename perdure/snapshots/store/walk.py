"""The names of the files below a folder, in order of whole names, beginning anywhere, with one folder of each depth in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["walk"]


def walk(root: Path, prefix: str, after: str) -> Iterator[str]:
    """Names relative to the root that begin with the folder `prefix` and come behind `after`, in order of their bytes.

    Names that no object has (beginning with a dot) and whatever is no plain file or folder are left out.
    """
    for entry in _sorted_entries(root / prefix):
        name = prefix + entry
        if not name.endswith("/"):
            if name > after:
                yield name
        elif name > after or after.startswith(name):
            # Else all that is in this folder comes before `after`.
            yield from walk(root, name, after)


def _sorted_entries(folder: Path) -> list[str]:
    """Folders end in a slash, and are sorted with it: `a-b` comes before `a/b`."""
    try:
        with os.scandir(folder) as entries:
            found = [
                entry.name + "/" * entry.is_dir(follow_symlinks=False)
                for entry in entries
                if not entry.name.startswith(".") and not entry.is_symlink()
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)
