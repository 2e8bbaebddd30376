"""perdure export"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import msgspec

from perdure.cli.options import DEFAULTS, Options, session
from perdure.engine.importing import encode_line

if TYPE_CHECKING:
    from perdure.client.engine import Engine

__all__ = ["export"]

PAGE_AGENTS: Final = 500


async def export(*agents: str, options: Options = DEFAULTS) -> None:
    """Write events as JSON lines to stdout, as `perdure import --format events` reads them.

    Parameters
    ----------
    agents
        Ids of agents [default: all of the tenant].
    """
    async with session(options) as engine:
        for agent in agents:
            await _write(engine, options.tenant_name, agent)
        if not agents:
            async for agent in _agents(engine, options.tenant_name):
                await _write(engine, options.tenant_name, agent)


async def _agents(engine: Engine, tenant: str) -> AsyncIterator[str]:
    after = ""
    while page := await engine.directory.list(tenant, after=after, limit=PAGE_AGENTS):
        for entry in page:
            yield entry.agent
        after = page[-1].agent


async def _write(engine: Engine, tenant: str, agent: str) -> None:
    async for event in engine.agent(agent, tenant=tenant).events(as_stored=True):
        # What a fork shares with its parent is written as its own: each agent's lines are its whole history.
        sys.stdout.buffer.write(encode_line(event if event.agent == agent else msgspec.structs.replace(event, agent=agent)))
