"""What names of tenants and agents may be."""

from __future__ import annotations

import re
from functools import lru_cache

from perdure import limits
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput, LimitExceeded

__all__ = ["check_names"]

_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@lru_cache(maxsize=50_000)
def check_names(name: AgentName) -> None:
    """Raise InvalidInput or LimitExceeded unless both names are 1 … limit characters, UTF-8, without control characters."""
    _check("tenant", name.tenant, limits.TENANT_LENGTH_MAX)
    _check("agent id", name.agent, limits.AGENT_ID_LENGTH_MAX)


def _check(what: str, name: object, length_max: int) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"{what} {name!r} is not a name", hint="give a string that is not empty")
    if len(name) > length_max:
        raise LimitExceeded(f"{what} has {len(name)} characters, the limit is {length_max}")
    if _CONTROL.search(name):
        raise InvalidInput(f"{what} {name!r} holds control characters", hint="use printable characters")
