"""Write docs/commands.md from the commands themselves: `make docs`."""

from __future__ import annotations

from pathlib import Path

from perdure.cli.entry import build

TARGET = Path(__file__).parent / "commands.md"


def main() -> None:
    """Replace the file."""
    lines = (line.rstrip() for line in build().generate_docs(output_format="markdown").splitlines())
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
