"""What nodes and their callers agree on over HTTP: where an agent's routes are, and which status stands for which error."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

import msgspec

from perdure.engine.log.records import AgentName
from perdure.errors import (
    AgentMoved,
    CommandFailed,
    Conflict,
    Denied,
    InvalidInput,
    LimitExceeded,
    NotFound,
    NotServed,
    Overloaded,
    PerdureError,
    Unavailable,
)

__all__ = [
    "AGENT_ROUTE",
    "CHANNEL_MESSAGE_MORE_BYTES",
    "CHANNEL_ROUTE",
    "NODE_ROUTE",
    "WHERE_ROUTE",
    "Answered",
    "Asked",
    "Where",
    "error_of",
    "path_of",
    "status_of",
]

AGENT_ROUTE: Final = re.compile(rb"/v1/tenants/(?P<tenant>[^/]+)/agents/(?P<agent>.+)/(?P<what>commands|hand-over|state)")
"""As it is sent; tenant and agent are quoted in it."""
NODE_ROUTE: Final = "/v1/node"
WHERE_ROUTE: Final = "/v1/where"
CHANNEL_ROUTE: Final = "/v1/channel"
"""A WebSocket. Each message is one command, and each command is answered by one message with its number."""
CHANNEL_MESSAGE_MORE_BYTES: Final = 16 * 1024
"""By how much a message may be longer than a command: it says for which agent it is."""
_STATUS: Final[dict[type[PerdureError], int]] = {
    InvalidInput: 400,
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    AgentMoved: 410,
    LimitExceeded: 413,
    NotServed: 421,
    CommandFailed: 422,
    Overloaded: 429,
    Unavailable: 503,
}
_ERRORS: Final = {status: kind for kind, status in _STATUS.items()}


class Where(msgspec.Struct):
    """Where are these agents ([tenant, agent], at most `limits.WHERE_AGENTS_MAX`)? silent: addresses that do not answer the caller. wait_s: how
    long it waits for one of them to be known. The answer is a list of addresses: '' where any node will do, null where none is known."""

    agents: list[tuple[str, str]]
    silent: list[str] = []
    wait_s: float = 0.0


class Asked(msgspec.Struct, array_like=True):
    """A command on a channel: `[1, "acme", "a", {"id": …, "body": …}]`. number: of this channel, the caller's choice."""

    number: int
    tenant: str
    agent: str
    command: msgspec.Raw


class Answered(msgspec.Struct, array_like=True):
    """What a command came to: `[1, 200, {"version": …}]`, or a problem with the status that it would have over HTTP."""

    number: int
    status: int
    content: msgspec.Raw


def path_of(name: AgentName, what: str) -> str:
    """The path of one of an agent's routes, quoted as it is sent."""
    return f"/v1/tenants/{quote(name.tenant, safe='')}/agents/{quote(name.agent, safe='')}/{what}"


def status_of(problem: PerdureError) -> int:
    """That of its class, or of the nearest one above that has one."""
    return next((_STATUS[kind] for kind in type(problem).__mro__ if kind in _STATUS), 500)


def error_of(status: int) -> type[PerdureError]:
    """The error that a status stands for; Unavailable where it says nothing."""
    return _ERRORS.get(status, Unavailable)
