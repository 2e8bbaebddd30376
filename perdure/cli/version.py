"""perdure version"""

from __future__ import annotations

import platform
from importlib import metadata

from perdure.cli.options import DEFAULTS, Options
from perdure.cli.output import emit

__all__ = ["version"]

_LIBRARIES = ("msgspec", "zstandard", "cryptography", "psycopg", "aiokafka", "redis", "obstore", "hvac")


def version(*, options: Options = DEFAULTS) -> None:
    """Versions of perdure, Python and the libraries (null: not installed)."""
    libraries = {name: _installed(name) for name in _LIBRARIES}
    facts = {"perdure": _installed("perdure"), "python": platform.python_version(), "platform": platform.platform(), "libraries": libraries}
    inside = ", ".join(f"{name} {found or '(not installed)'}" for name, found in libraries.items())
    emit(facts, as_json=options.json, text=f"perdure {facts['perdure']}\nPython {facts['python']}, {facts['platform']}\n{inside}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
