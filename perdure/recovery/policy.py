"""Auto-recovery: for which agents it is on, how often it is tried, and how long it waits between the tries."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput

__all__ = ["DEFAULT", "Policy", "get_policy", "list_policies", "policy_of", "set_policy"]

SCOPE: Final = "auto-recovery"
RETRIES_MAX: Final = 100
BACKOFF_MAX_S: Final = 3_600.0


class Policy(msgspec.Struct, frozen=True):
    """enabled: the supervisor acts by itself. retries: further tries after the first. backoff_s: before the second; it doubles with each."""

    enabled: bool = True
    retries: int = 5
    backoff_s: float = 1.0

    def wait_s(self, tries: int) -> float:
        """How long to wait after so many tries before the next."""
        return float(min(self.backoff_s * 2 ** (tries - 1), BACKOFF_MAX_S))


DEFAULT: Final = Policy()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Policy).decode


def _document(name: AgentName) -> str:
    return f"{quote(name.tenant, safe='')}/{quote(name.agent, safe='')}"


async def get_policy(store: LogStore, name: AgentName) -> Policy:
    """The agent's policy; the default where none was set."""
    document = await store.get_document(SCOPE, _document(name))
    return _decode(document.value) if document else DEFAULT


async def list_policies(store: LogStore) -> dict[str, Policy]:
    """Policies that were set, by the name of their document (see `policy_of`)."""
    return {document.name: _decode(document.value) for document in await store.list_documents(SCOPE)}


def policy_of(policies: dict[str, Policy], name: AgentName) -> Policy:
    """The agent's among those that were listed."""
    return policies.get(_document(name), DEFAULT)


async def set_policy(store: LogStore, name: AgentName, policy: Policy) -> None:
    """Set it. Raises InvalidInput."""
    if not 0 <= policy.retries <= RETRIES_MAX:
        raise InvalidInput(f"retries is {policy.retries}", hint=f"0 to {RETRIES_MAX}")
    if not 0 < policy.backoff_s <= BACKOFF_MAX_S:
        raise InvalidInput(f"backoff_s is {policy.backoff_s:g}", hint=f"above 0, up to {BACKOFF_MAX_S:g}")
    await store.put_document(SCOPE, _document(name), _encode(policy), expected=None)
