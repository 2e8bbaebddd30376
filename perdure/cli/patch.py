"""perdure patch"""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from perdure.cli.append import parsed
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit
from perdure.cli.render import change_fields, change_lines
from perdure.engine.log.records import rfc3339

__all__ = ["patch"]


async def patch(
    agent: str,
    patch: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    expected: int | None = None,
    type: str = "state_updated",
    actor: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Change an agent's state; prints the changes and the new version.

    Parameters
    ----------
    agent
        The agent's id.
    patch
        JSON: an object is an RFC 7396 merge patch, a list RFC 6902 operations; `-` reads it from stdin.
    expected
        The version that the agent must be at; else exit code 4. Without it the patch is decided anew when others were faster.
    type
        Type of the event.
    actor
        Who does it.
    """
    wanted = parsed(sys.stdin.read() if patch == "-" else patch, "the patch")
    async with session(options, create=True) as engine:
        done = await engine.agent(agent, tenant=options.tenant_name).update(wanted, type=type, expected=expected, actor=actor)
    facts = {
        "tenant": options.tenant_name,
        "agent": agent,
        "previous_version": done.previous_version,
        "version": done.version,
        "changes": [change_fields(change) for change in done.changes],
        "checksum": done.checksum,
        "time": rfc3339(done.time),
        "id": done.events[0].id,
    }
    emit(facts, as_json=options.json, text=f"{change_lines(done.changes)}\nversion {done.version}")
