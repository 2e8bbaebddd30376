"""From the words of the command line to an exit code: parsing, interrupts, a reader that went away."""

from __future__ import annotations

import difflib
import inspect
import sys
from typing import TYPE_CHECKING, Any, Final

from perdure.cli.commands import COMMANDS, GLOBAL_FLAGS, overview
from perdure.cli.failures import report
from perdure.errors import InvalidInput
from perdure.processes import reader_gone, run_lasting

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from cyclopts import App

__all__ = ["EXIT_CODES", "build", "run"]

EXIT_CODES: Final = {
    0: "done",
    1: "failed",
    2: "usage: a flag, an argument, a setting or an input is wrong",
    3: "not found",
    4: "conflict: the agent is not at the expected version",
    5: "integrity: stored data is not what was written",
    6: "unavailable: a server or a program that is needed",
    7: "denied: a key is missing, or another person must approve it first",
    130: "interrupted",
}
_FAILED, _INTERRUPTED = 1, 130
LASTING: Final = frozenset({"host", "project", "relay", "run", "transfer"})
_WITH_VALUE = {flag for flag, _ in GLOBAL_FLAGS} - {"--json"}


def run(arguments: list[str] | None = None) -> int:
    """Run one command; never raises for what a user can cause."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return reader_gone()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else _FAILED
    except Exception as error:
        return report(error, as_json="--json" in words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        print(overview(), end="")
        return 0
    if words == ["--version"]:
        words = ["version"]
    words = globals_behind(words)
    _known(words[0])
    command, bound, _ = build().parse_args(words, exit_on_error=False, print_error=False)
    result = command(*bound.args, **bound.kwargs)
    if inspect.iscoroutine(result):
        result = run_lasting(result) if words[0] in LASTING else _run_briefly(result)
    return result if isinstance(result, int) else 0


def _run_briefly(work: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    return asyncio.run(work)


def _known(word: str) -> None:
    """Refuse an unknown command here: the parser would import every command to look for a similar name."""
    names = [command.name for command in COMMANDS]
    if word not in names:
        near = difflib.get_close_matches(word, names, 1)
        raise InvalidInput(
            f"there is no command {word!r}", hint=f"did you mean perdure {near[0]}?" if near else "perdure --help lists them"
        )


def globals_behind(words: list[str]) -> list[str]:
    """`perdure --tenant acme show x` means `perdure show x --tenant acme`: options of every command may stand before it."""
    rest, moved = list(words), list[str]()
    while rest and rest[0].partition("=")[0] in _WITH_VALUE | {"--json"}:
        takes = 2 if rest[0] in _WITH_VALUE else 1
        moved += rest[:takes]
        rest = rest[takes:]
    if "--" in rest:
        end = rest.index("--")
        return rest[:end] + moved + rest[end:]
    return rest + moved


def build() -> App:
    """The parser. Commands are named by where they are, and imported when they are called."""
    from cyclopts import App

    from perdure.cli.help import HelpFormat

    about = "The state engine under AI agents."
    app = App(name="perdure", help=about, help_formatter=HelpFormat(), suppress_keyboard_interrupt=False)
    app.version_flags = ()
    for command in COMMANDS:
        app.command(f"perdure.cli.{command.target}", name=command.name)
    return app
