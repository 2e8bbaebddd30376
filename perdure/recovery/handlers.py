"""Finding the function that a node serves its agents with."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.engine.changes import append, set_value
from perdure.engine.event import Event
from perdure.errors import InvalidInput
from perdure.recovery.commands import Handler

__all__ = ["load_handler", "talk"]


def load_handler(where: str) -> Handler:
    """The function named `package.module:function`; modules of the current folder are found too. Raises InvalidInput."""
    module_name, _, function_name = where.partition(":")
    if not module_name or not function_name:
        raise InvalidInput(f"{where!r} names no function", hint="write package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        raise InvalidInput(
            f"there is no module {problem.name!r}", hint="modules are looked for here and among what is installed"
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InvalidInput(f"module {module_name} has no function {function_name!r}")
    found: Handler = function
    return found


def talk(state: dict[str, Any], body: Any) -> Sequence[Event]:
    """An example: keeps what it is told, `{"say": TEXT}`, and counts."""
    if not isinstance(body, dict) or not isinstance(body.get("say"), str):
        raise InvalidInput("this agent understands nothing else", hint='send {"say": "some text"}')
    message = {"role": "user", "content": body["say"]}
    return [Event("message_added", changes=(append("/messages", message), set_value("/count", state.get("count", 0) + 1)))]
