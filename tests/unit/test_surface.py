"""What `import perdure` offers."""

from __future__ import annotations

import subprocess
import sys

import perdure
from perdure import errors


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    names = list(perdure.__all__)
    # Constants, then classes, then functions, each by name: what the linter sorts to.
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert [name for name in names if not hasattr(perdure, name)] == []


def test_every_error_is_in_the_one_tree_with_a_code_and_an_exit_code() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.PerdureError)
        assert kind.code
        assert 1 <= kind.exit_code <= 7


def test_the_tree_in_the_docstring_names_every_error() -> None:
    missing = [name for name in errors.__all__ if name not in (errors.__doc__ or "")]
    assert missing == []


def test_importing_the_package_needs_no_server_library() -> None:
    code = "import perdure, sys; print([m for m in ('psycopg', 'aiokafka', 'redis', 'rich', 'cyclopts') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_engine_loads_what_few_need_only_when_it_is_asked_for() -> None:
    late = ("perdure.client.recovery", "perdure.client.backups", "perdure.client.upkeep", "perdure.client.verify", "perdure.engine.relay")
    code = f"import perdure.client.engine, sys; print([name for name in {late} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
