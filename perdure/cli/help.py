"""How `perdure COMMAND --help` looks: names on the left, what they mean on the right, wrapped where the terminal ends."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from cyclopts.help import PlainFormatter

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

__all__ = ["HelpFormat"]

WIDTH_MAX: Final = 120
NAMES_MAX: Final = 26
"""Columns of the names; where one is longer, its meaning begins below it."""
_GAP: Final = 2


class HelpFormat(PlainFormatter):
    """The plain form, without colours, in two columns."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:  # noqa: ARG002 - as it is called
        """Print one group of arguments, options or commands."""
        rows = [(_names(entry), _meaning(entry)) for entry in panel.entries if entry.display_labels]
        if not rows:
            return
        width = min(NAMES_MAX, max(len(names) for names, _ in rows))
        lines = [f"{panel.title}:"] if panel.title else []
        for names, meaning in rows:
            lines += _row(names, meaning, width, min(console.width, WIDTH_MAX))
        console.print("\n".join([*lines, ""]), highlight=False, markup=False, soft_wrap=True)


def _row(names: str, meaning: str, width: int, columns: int) -> list[str]:
    indent = " " * (_GAP + width + _GAP)
    words = textwrap.wrap(meaning, max(columns - len(indent), 20), break_long_words=False, break_on_hyphens=False)
    if len(names) > width or not words:
        return [f"{' ' * _GAP}{names}", *(indent + line for line in words)]
    return [f"{' ' * _GAP}{names:<{width}}{' ' * _GAP}{words[0]}", *(indent + line for line in words[1:])]


def _names(entry: HelpEntry) -> str:
    names = ", ".join(entry.display_labels)
    return f"{names} {entry.metavar}" if entry.metavar and entry.all_options else names


def _meaning(entry: HelpEntry) -> str:
    parts = [_plain(entry.description)]
    if entry.choices:
        parts.append(f"[choices: {', '.join(entry.choices)}]")
    if entry.env_var:
        parts.append(f"[{', '.join(entry.env_var)}]")
    if entry.metavar is not None and entry.default not in (None, '""'):
        parts.append(f"[default: {entry.default}]")
    if entry.required:
        parts.append("[required]")
    return " ".join(part for part in parts if part)


def _plain(text: Any) -> str:
    """What a text of rich says, in one line."""
    if text is None or isinstance(text, str):
        return text or ""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=10_000, color_system=None)
    with console.capture() as captured:
        console.print(text, end="")
    return " ".join(captured.get().split())
