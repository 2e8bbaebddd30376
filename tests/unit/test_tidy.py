"""The house style, where a machine can tell."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# Spelled in two halves, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
SKIPS = re.compile(r"pytest\.(mark\.)?(sk" + r"ip|xf" + r"ail)")
# A poll of a few hundredths of a second is how a test watches another process; anything longer waits for luck.
SLEEPS = re.compile(r"(?:time|asyncio|anyio)\.sle" + r"ep\((?:[1-9]|0\.[1-9])")


def sources(*folders: str) -> list[Path]:
    """The project's own Python files, without caches."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


@cache
def tree(path: Path) -> ast.Module:
    """Each file is parsed once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def places(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


ALL = ("perdure", "tests", "benchmarks")


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in sources(*ALL) if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX}
    assert long == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}"
        for path in sources(*ALL)
        for node in functions(path)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_nothing_is_marked_unfinished() -> None:
    assert places(UNFINISHED, sources(*ALL)) == []


def test_no_test_is_left_out() -> None:
    assert places(SKIPS, sources("tests")) == []


def test_no_test_sleeps_where_it_could_wait() -> None:
    assert places(SLEEPS, sources("tests")) == []


def test_no_handler_swallows_every_exception() -> None:
    swallowed = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*ALL)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and isinstance(node.body[0], ast.Pass)
        and (node.type is None or getattr(node.type, "id", "") in {"Exception", "BaseException"})
    ]
    assert swallowed == []


def test_public_functions_of_the_product_say_what_they_do() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sources("perdure")
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert bare == []


def test_the_rooms_import_one_way() -> None:
    result = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["engine", "cli", "projections", "services", "security"])
def test_no_room_leaks_as_a_top_level_package(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_every_file_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources("perdure", "benchmarks")
        if len(ast.get_docstring(tree(path)) or "") < len("perdure log")
    ]
    assert silent == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for type checkers count, too: what a file speaks of, it needs."""
    rooms = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources("perdure")}
    needs = {name: set(imported(path, rooms.keys())) for name, path in rooms.items()}
    while free := {name for name, others in needs.items() if not others}:
        needs = {name: others - free for name, others in needs.items() if name not in free}
    assert needs == {}


def imported(path: Path, rooms: Collection[str]) -> Iterator[str]:
    """Which of the rooms a file imports, at its top or where they are first needed."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in rooms)
        elif isinstance(node, ast.ImportFrom):
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield from (each for each in (name if name in rooms else node.module,) if each in rooms)
