"""perdure schemas list | publish | withdraw"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from perdure.cli.append import parsed
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain, table
from perdure.cli.render import excerpt
from perdure.errors import InvalidInput

__all__ = ["app"]

app = App(name="schemas", help="JSON Schemas that states of an agent type must satisfy, in every process.")


@app.command(name="list")
async def list_(*, options: Options = DEFAULTS) -> None:
    """The schemas that are published, by agent type."""
    async with session(options) as engine:
        listed = await engine.schemas.list()
    rows = [(each.type, excerpt(each.schema)) for each in listed]
    emit({"schemas": plain(listed)}, as_json=options.json, text=table(("TYPE", "SCHEMA"), rows) if rows else "no schemas")


@app.command
async def publish(
    type: str,
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    replace: Annotated[bool, Parameter(negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """Validate states of an agent type from now on; stored events stay as they are.

    Parameters
    ----------
    type
        The agent type.
    file
        A file with a JSON Schema, or `-` for stdin.
    replace
        Put it in the place of another one.
    """
    schema = _read(file)
    async with session(options, create=True) as engine:
        await engine.schemas.publish(type, schema, replace=replace)
    emit({"type": type, "published": True}, as_json=options.json, text=f"states of type {type} are checked from now on")


@app.command
async def withdraw(type: str, /, *, options: Options = DEFAULTS) -> None:
    """Stop validating states of an agent type.

    Parameters
    ----------
    type
        The agent type.
    """
    async with session(options) as engine:
        await engine.schemas.withdraw(type)
    emit({"type": type, "published": False}, as_json=options.json, text=f"states of type {type} may be as they like")


def _read(file: str) -> Any:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8: {error.reason}") from error
    return parsed(text, file)
