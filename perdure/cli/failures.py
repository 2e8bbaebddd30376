"""What a command that failed says: one line and a hint, or one JSON object, on stderr; and its exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from perdure.errors import AgentNotFound, PerdureError

if TYPE_CHECKING:
    from cyclopts import CycloptsError

__all__ = ["report"]

_FAILED, _USAGE = 1, 2
_KINDS: Final = {int: "a whole number", float: "a number", UUID: "a UUID"}


def report(error: Exception, *, as_json: bool) -> int:
    """Say what failed; return the exit code."""
    if os.environ.get("PERDURE_DEBUG") == "1":
        traceback.print_exception(error)
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]  # of tasks that ended together, the first one says why
    facts, code = _facts(error)
    if as_json:
        import msgspec

        print(msgspec.json.encode({"error": {**facts, "exit_code": code}}, enc_hook=str).decode(), file=sys.stderr)
        return code
    print(f"perdure: {' '.join(str(facts['message']).split())}", file=sys.stderr)
    if hint := facts.get("hint"):
        print(f"hint: {hint}", file=sys.stderr)
    return code


def _facts(error: Exception) -> tuple[dict[str, object], int]:
    if isinstance(error, PerdureError):
        return _with_hint(error).as_dict(), error.exit_code
    if type(error).__module__.partition(".")[0] == "cyclopts":
        from cyclopts import CycloptsError

        if isinstance(error, CycloptsError):
            command = " ".join(("perdure", *(error.command_chain or ())))
            message, hint = _misused(error, command)
            return {"code": "usage", "message": message, "retryable": False, "hint": hint}, _USAGE
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        message = f"{error.filename}: {reason}" if error.filename else reason
        return {"code": "os_error", "message": message, "retryable": False}, _FAILED
    hint = "this is a fault in perdure; PERDURE_DEBUG=1 shows where it arose"
    return {"code": "internal", "message": f"{type(error).__name__}: {error}", "retryable": False, "hint": hint}, _FAILED


def _with_hint(error: PerdureError) -> PerdureError:
    """An agent that is not there is mostly one of another tenant, or misspelt: which command tells."""
    if isinstance(error, AgentNotFound) and not error.hint and error.tenant is not None:
        error.hint = f"perdure agents --tenant {error.tenant} lists them; --tenant or PERDURE_TENANT names another tenant"
    return error


def _misused(error: CycloptsError, command: str) -> tuple[str, str]:
    """The parser's complaint in words of ours, where its own need explaining, and where to look."""
    from cyclopts.exceptions import CoercionError, MissingArgumentError, UnusedCliTokensError

    hint = f"{command} --help"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{command} takes no {' '.join(map(repr, error.unused_tokens))}", hint
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        if error.keyword is not None:
            return f"{error.keyword} needs a value", hint
        variables = _variables(error.argument)
        return f"{command} needs {error.argument.name}", f"{' or '.join(variables)} gives it, too; {hint}" if variables else hint
    if isinstance(error, CoercionError) and error.token is not None and error.target_type in _KINDS and error.argument is not None:
        name = error.token.keyword or error.argument.name.lstrip("-").upper()
        return f"{name} is {error.token.value!r}, not {_KINDS[error.target_type]}", hint
    return str(error).strip(), hint


def _variables(argument: Any) -> list[str]:
    """The environment variables that would have given the value."""
    named = argument.parameter.env_var or ()
    return [named] if isinstance(named, str) else list(named)
