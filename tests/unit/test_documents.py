"""The documents tell the truth: every error, every setting, every test and every file that they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure.testing.log_kit as kit
from perdure import errors

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text("utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")
TESTING = (ROOT / "docs/testing.md").read_text("utf-8")
OF_TESTS = {"PERDURE_KILL_POINT", "PERDURE_TEST_DATA", "PERDURE_TEST_SERVICES"}


def all_errors(kind: type[errors.PerdureError] = errors.PerdureError) -> Iterator[type[errors.PerdureError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__.startswith("perdure."):
            yield from all_errors(each)


def test_every_error_is_explained_with_its_exit_code_and_whether_to_retry() -> None:
    told = {
        code: (int(number), bool(retry)) for code, retry, number in re.findall(r"^\| `(\w+)`( ↻)? \| (\d+) \|", OPERATIONS, re.MULTILINE)
    }
    assert told == {each.code: (each.exit_code, each.retryable) for each in all_errors()}


def test_every_variable_that_the_product_reads_is_explained() -> None:
    read: set[str] = set()
    for file in (ROOT / "perdure").rglob("*.py"):
        read.update(re.findall(r"\bPERDURE_[A-Z][A-Z0-9_]*[A-Z0-9]\b", file.read_text("utf-8")))
    missing = {
        name for name in read - OF_TESTS if name not in OPERATIONS and f"…_{name.removeprefix('PERDURE_SERVICES_')}" not in OPERATIONS
    }
    assert missing == set()


def test_every_test_and_case_that_is_named_is_there() -> None:
    sources = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TESTING))
    assert {name for name in named if f"def {name}(" not in sources} == set()
    cases = {case.__name__ for case in (*kit.STORE_CASES, *kit.LOG_CASES, *kit.TAIL_CASES)}
    attacks = TESTING.partition("## The tail under attack")[2].partition("## ")[0]
    assert set(re.findall(r"`(\w+_\w+)`", attacks)) - {"log_kit"} <= cases
    assert {case.__name__ for case in kit.TAIL_CASES} <= set(re.findall(r"`(\w+)`", attacks))


def test_every_step_that_can_be_killed_is_named_in_the_table_of_its_process() -> None:
    steps: set[str] = set()
    for room in ("engine", "projections"):
        for file in (ROOT / "perdure" / room).rglob("*.py"):
            steps.update(re.findall(r"reach\(\"([\w.]+)\"\)", file.read_text("utf-8")))
    assert {step for step in steps if f"`{step}`" not in TESTING} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", document.read_text("utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs/README.md"
    named = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index.read_text("utf-8"))}
    assert {path for path in (ROOT / "docs").rglob("*.md") if path != index} - named == set()


def test_the_commands_of_the_readme_are_there() -> None:
    from perdure.cli.commands import COMMANDS

    blocks = "".join(re.split(r"^```.*$", README, flags=re.MULTILINE)[1::2])
    used = set(re.findall(r"^perdure (\w+)", blocks, re.MULTILINE))
    assert used
    assert used <= {command.name for command in COMMANDS}
    targets = set(re.findall(r"^make (\w+)", blocks, re.MULTILINE))
    assert targets
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
