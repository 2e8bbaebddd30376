"""perdure diff"""

from __future__ import annotations

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit
from perdure.cli.render import change_fields, change_lines

__all__ = ["diff"]


async def diff(agent: str, from_version: int, to_version: int | None = None, /, *, options: Options = DEFAULTS) -> None:
    """What changed between two versions of an agent, as a list of changes.

    Parameters
    ----------
    agent
        The agent's id.
    from_version
        The version to compare from; 0 is the empty state.
    to_version
        The version to compare with [default: the newest].
    """
    async with session(options) as engine:
        handle = engine.agent(agent, tenant=options.tenant_name)
        last = to_version if to_version is not None else (await handle.state(consistency="strong")).version
        changes = await handle.diff(from_version, last)
    facts = {"agent": agent, "from_version": from_version, "to_version": last, "changes": [change_fields(change) for change in changes]}
    emit(facts, as_json=options.json, text=change_lines(changes))
