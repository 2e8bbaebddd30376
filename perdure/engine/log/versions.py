"""Versions that an agent does not have."""

from __future__ import annotations

from perdure.engine.log.records import AgentName, AgentRecord
from perdure.errors import VersionNotFound

__all__ = ["no_version"]


def no_version(agent: AgentName | AgentRecord, version: int, newest: int | None = None, *, first: int = 0) -> VersionNotFound:
    """The error of a read of such a version. first, newest: those that could be asked for, where that is known."""
    return VersionNotFound(
        f"agent {agent.agent!r} has no version {version}",
        hint="" if newest is None else f"its versions are {first} to {newest}",
        tenant=agent.tenant,
        agent=agent.agent,
        version=version,
    )
