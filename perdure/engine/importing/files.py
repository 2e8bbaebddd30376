"""Opens what is to be imported, and reads it by lines or as one text, within limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from perdure.engine.importing import contract
from perdure.engine.importing.contract import SUFFIXES
from perdure.errors import ImportFailed

__all__ = ["Source", "expand"]


def expand(path: Path) -> list[Path]:
    """The file itself, or the files of a folder and its folders that have a known suffix, by name. Raises ImportFailed, OSError."""
    if not path.is_dir():
        return [path]
    files = [Path(folder) / name for folder, _, names in os.walk(path, onerror=_raise) for name in names if name.endswith(SUFFIXES)]
    if not files:
        raise ImportFailed(f"the folder holds no file that ends in {', '.join(SUFFIXES)}")
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error


class Source:
    """A stream of bytes with a name: its first lines can be looked at before it is read."""

    def __init__(self, stream: BinaryIO, file: str, folder: str, stem: str, *, by_lines: bool) -> None:
        self.file = file
        self.folder = folder
        self.stem = stem
        self.by_lines = by_lines
        self._lines = self._numbered(stream)
        self._stream = stream
        self._seen: list[tuple[int, bytes]] = []

    def peek(self, count: int) -> list[bytes]:
        """The first lines that are not blank, fewer if there are no more. Raises ImportFailed, OSError."""
        while len(self._seen) < count:
            line = next(self._lines, None)
            if line is None:
                break
            self._seen.append(line)
        return [line for _, line in self._seen[:count]]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line that is not blank, with its number. Raises ImportFailed, OSError."""
        return chain(self._seen, self._lines)

    def everything(self) -> tuple[bytes, int]:
        """All the bytes from the first line that is not blank on, and that line's number. Raises ImportFailed, OSError."""
        if not self._seen:
            return b"", 1
        first = previous = self._seen[0][0]
        parts: list[bytes] = []
        for number, line in self._seen:
            parts += [b"\n" * (number - previous - 1), line]
            previous = number
        head = b"".join(parts)
        content = head + self._stream.read(contract.DOCUMENT_BYTES_MAX + 1 - len(head))
        if len(content) > contract.DOCUMENT_BYTES_MAX:
            raise ImportFailed(f"is larger than {contract.DOCUMENT_BYTES_MAX} bytes in one document, make it JSON lines")
        return content, first

    @staticmethod
    def _numbered(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        number = 0
        while line := stream.readline(contract.LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > contract.LINE_BYTES_MAX:
                raise ImportFailed(f"line {number} is longer than {contract.LINE_BYTES_MAX} bytes", line=number)
            if line.strip():
                yield number, line
