"""perdure blame"""

from __future__ import annotations

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit
from perdure.cli.render import change_lines, event_fields, event_line
from perdure.errors import NotFound

__all__ = ["blame"]


async def blame(agent: str, path: str, /, *, options: Options = DEFAULTS) -> None:
    """The newest event that set the value at a path of the state.

    Parameters
    ----------
    agent
        The agent's id.
    path
        A JSON pointer, e.g. /messages/3/content.
    """
    async with session(options) as engine:
        event = await engine.agent(agent, tenant=options.tenant_name).blame(path)
    if event is None:
        raise NotFound(
            f"no event of {agent} has touched {path or '(root)'}", hint="see its paths: perdure show", tenant=options.tenant_name
        )
    emit(event_fields(event), as_json=options.json, text=f"{event_line(event)}\n{change_lines(event.changes)}")
