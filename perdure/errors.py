"""Every error of perdure, in one tree.

::

    PerdureError
    ├── InvalidInput                 what was handed in cannot be accepted
    │   ├── LimitExceeded            a named limit of perdure.limits
    │   ├── InvalidEvent             an envelope, a payload or a changeset
    │   ├── InvalidPath              a path of a change
    │   ├── InvalidPatch             an RFC 6902 / RFC 7396 update
    │   ├── ReadOnly                 a state that was handed out would be changed in place; also a TypeError
    │   ├── SchemaViolation          a registered schema does not hold
    │   └── ImportFailed             a record of a file (file, line, reason)
    ├── ConfigurationError           a setting, a URL, a server's settings
    │   ├── MissingDependency        a program or an extra is not installed
    │   └── UnsafeSettings           a server would acknowledge what is not durable
    ├── NotFound
    │   ├── AgentNotFound
    │   ├── EventNotFound
    │   ├── VersionNotFound
    │   │   └── Compacted            it was there, and was removed: first_version or first_offset says from where on all is there
    │   ├── ProjectionNotFound
    │   ├── SnapshotNotFound
    │   ├── DictionaryNotFound       a sealed value names a dictionary that is not loaded here
    │   └── ObjectNotFound           the store has no object of that name
    ├── Conflict                     the expected version does not hold
    │   ├── Fenced                   a newer epoch owns the agent
    │   │   └── AgentMoved           another engine does; address says which
    │   └── AlreadyExists
    ├── IntegrityError               stored data is not what was written
    │   ├── ChainBroken              hash chain of an agent
    │   ├── SealBroken               authentication of a sealed value failed
    │   └── Quarantined              the agent's projection stands still, with the reason
    ├── Unavailable                  a server is away; retryable
    │   ├── DeadlineExceeded
    │   ├── Overloaded               a bounded queue is full
    │   └── NotServed                another node serves the agent, or none does at the moment
    ├── CommandFailed                the handler of an agent host refused a command, or failed
    └── Denied                       a tenant, a key or a grant forbids it
        ├── ApprovalRequired         another person must approve it first; approval is the id of what was asked for
        └── KeyUnavailable           the key is missing or was destroyed

Catch `PerdureError` for all of them. Each class has a stable `code` (used by the HTTP API as the problem type), an `exit_code` (used by the
command) and says by `retryable` whether the same call can succeed later without a change.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AgentMoved",
    "AgentNotFound",
    "AlreadyExists",
    "ApprovalRequired",
    "ChainBroken",
    "CommandFailed",
    "Compacted",
    "ConfigurationError",
    "Conflict",
    "DeadlineExceeded",
    "Denied",
    "DictionaryNotFound",
    "EventNotFound",
    "Fenced",
    "ImportFailed",
    "IntegrityError",
    "InvalidEvent",
    "InvalidInput",
    "InvalidPatch",
    "InvalidPath",
    "KeyUnavailable",
    "LimitExceeded",
    "MissingDependency",
    "NotFound",
    "NotServed",
    "ObjectNotFound",
    "Overloaded",
    "PerdureError",
    "ProjectionNotFound",
    "Quarantined",
    "ReadOnly",
    "SchemaViolation",
    "SealBroken",
    "SnapshotNotFound",
    "Unavailable",
    "UnsafeSettings",
    "VersionNotFound",
]


class PerdureError(Exception):
    """Something failed in perdure.

    message: one line, what happened; hint: one line, what to do about it; the fields name where (None where it does not apply);
    details: further machine-readable facts.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str = "",
        *,
        hint: str = "",
        tenant: str | None = None,
        agent: str | None = None,
        version: int | None = None,
        **details: Any,
    ) -> None:
        # The class's own first line is the default message, so that no error is ever empty.
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = hint
        self.tenant = tenant
        self.agent = agent
        self.version = version
        self.details = details
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.tenant, self.agent, self.version, self.details))

    def as_dict(self) -> dict[str, Any]:
        """The error as plain values, as `--json` and the HTTP API print it."""
        fields = {"tenant": self.tenant, "agent": self.agent, "version": self.version, "hint": self.hint or None}
        known = {name: value for name, value in fields.items() if value is not None}
        return {"code": self.code, "message": self.message, "retryable": self.retryable, **known, **self.details}


def _rebuild(
    kind: type[PerdureError],
    message: str,
    hint: str,
    tenant: str | None,
    agent: str | None,
    version: int | None,
    details: dict[str, Any],
) -> PerdureError:
    return kind(message, hint=hint, tenant=tenant, agent=agent, version=version, **details)


class InvalidInput(PerdureError):
    """The input cannot be accepted."""

    code = "invalid_input"
    exit_code = 2


class LimitExceeded(InvalidInput):
    """The input is larger than a named limit."""

    code = "limit_exceeded"


class InvalidEvent(InvalidInput):
    """The event is not well formed."""

    code = "invalid_event"


class InvalidPath(InvalidInput):
    """The path of a change is not a JSON pointer into a document."""

    code = "invalid_path"


class InvalidPatch(InvalidInput):
    """The patch cannot be applied to this state."""

    code = "invalid_patch"


class ReadOnly(InvalidInput, TypeError):
    """It is shared, and cannot be changed in place."""

    code = "read_only"


class SchemaViolation(InvalidInput):
    """The state would not satisfy the schema registered for its agent type."""

    code = "schema_violation"


class ImportFailed(InvalidInput):
    """A record of an imported file is broken."""

    code = "import_failed"
    exit_code = 1


class ConfigurationError(PerdureError):
    """A setting is missing or wrong."""

    code = "configuration"
    exit_code = 2


class MissingDependency(ConfigurationError):
    """A program or an optional package that this needs is not installed."""

    code = "missing_dependency"
    exit_code = 6


class UnsafeSettings(ConfigurationError):
    """The server's settings would acknowledge what is not durable."""

    code = "unsafe_settings"


class NotFound(PerdureError):
    """It is not there."""

    code = "not_found"
    exit_code = 3


class AgentNotFound(NotFound):
    """There is no such agent."""

    code = "agent_not_found"


class EventNotFound(NotFound):
    """There is no such event."""

    code = "event_not_found"


class VersionNotFound(NotFound):
    """The agent has no such version."""

    code = "version_not_found"


class Compacted(VersionNotFound):
    """It was removed from the log under a retention policy."""

    code = "compacted"


class ProjectionNotFound(NotFound):
    """There is no projection of that name."""

    code = "projection_not_found"


class SnapshotNotFound(NotFound):
    """There is no such snapshot."""

    code = "snapshot_not_found"


class DictionaryNotFound(NotFound):
    """The compression dictionary is not loaded, or not there."""

    code = "dictionary_not_found"


class ObjectNotFound(NotFound):
    """The store of snapshots has no object of that name."""

    code = "object_not_found"


class Conflict(PerdureError):
    """The agent is not at the expected version."""

    code = "conflict"
    exit_code = 4


class Fenced(Conflict):
    """A newer epoch owns the agent."""

    code = "fenced"


class AlreadyExists(Conflict):
    """It is there already."""

    code = "already_exists"


class IntegrityError(PerdureError):
    """Stored data is not what was written."""

    code = "integrity"
    exit_code = 5


class ChainBroken(IntegrityError):
    """The hash chain of an agent does not hold."""

    code = "chain_broken"


class SealBroken(IntegrityError):
    """A sealed value failed its authentication."""

    code = "seal_broken"


class Quarantined(IntegrityError):
    """The agent's projection stands still until an operator resolves it."""

    code = "quarantined"


class Unavailable(PerdureError):
    """A server that is needed does not answer."""

    code = "unavailable"
    exit_code = 6
    retryable = True


class DeadlineExceeded(Unavailable):
    """The answer did not come in time; the outcome is unknown, a retry with the same ids is safe."""

    code = "deadline_exceeded"


class Overloaded(Unavailable):
    """A bounded queue is full."""

    code = "overloaded"


class NotServed(Unavailable):
    """The agent is not served here. `address` says where it is, when that is known."""

    code = "not_served"


class AgentMoved(Fenced):
    """The agent went to another engine. `address` says which."""

    code = "agent_moved"


class CommandFailed(PerdureError):
    """The handler refused the command, or failed; nothing was written."""

    code = "command_failed"


class Denied(PerdureError):
    """It is not allowed."""

    code = "denied"
    exit_code = 7


class ApprovalRequired(Denied):
    """Another person must approve it first. `approval` is the id of what was asked for."""

    code = "approval_required"


class KeyUnavailable(Denied):
    """The key is missing or was destroyed."""

    code = "key_unavailable"
