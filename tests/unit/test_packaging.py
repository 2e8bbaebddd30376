"""What the package says that it needs is what it imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=;~! ]", requirement, maxsplit=1)[0].lower()


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_the_extra_of_all_names_every_other_extra() -> None:
    (own,) = (requirement for requirement in EXTRAS["all"] if name_of(requirement) == "perdure")
    named = own.partition("[")[2].partition("]")[0].split(",")
    assert sorted(named) == sorted(EXTRAS.keys() - {"all"})


def test_every_library_that_is_imported_is_declared() -> None:
    declared = {name_of(requirement) for requirements in (PROJECT["dependencies"], *EXTRAS.values()) for requirement in requirements}
    # Of the development group: the kits are run by pytest, and Testcontainers (with docker) is a way to start servers only where it is installed.
    declared |= {"pytest", "testcontainers", "docker"}
    declared |= {"hiredis", "psycopg-pool"}  # as redis[hiredis] and psycopg[pool]
    known = packages_distributions()
    missing = {}
    for file in sorted((ROOT / "perdure").rglob("*.py")):
        for module in imports(file):
            if module in sys.stdlib_module_names or module == "perdure":
                continue
            distributions = {name.lower().replace("_", "-") for name in known.get(module, [module])}
            if not distributions & declared:
                missing[module] = file.relative_to(ROOT).as_posix()
    assert missing == {}
