"""The wheel, built by way of the source distribution, holds exactly the package's files of the tree."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHES = {"__pycache__"}


def main() -> int:
    """0 when tree and wheel agree, else 1 with the differences."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("perdure/")}
    files = (path for path in (ROOT / "perdure").rglob("*") if path.is_file() and not CACHES & set(path.parts))
    tree = {path.relative_to(ROOT).as_posix() for path in files}
    for name in sorted(tree - packed):
        print(f"not in the wheel: {name}", file=sys.stderr)
    for name in sorted(packed - tree):
        print(f"not in the tree: {name}", file=sys.stderr)
    print(f"{wheel.name}: {len(packed)} files")
    return int(tree != packed)


if __name__ == "__main__":
    sys.exit(main())
