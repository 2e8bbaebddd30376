"""The command `perdure`: one file per command, the table of them in `commands`."""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/cli.md has the table)."""
    from perdure.cli.entry import run

    return run(arguments)
