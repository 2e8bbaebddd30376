"""The thirteen event types of an agent's life, typed.

Each knows its name, its domain data and the changes that it makes to a state that `AgentState` describes::

    await agent.append([StatusChanged(status="busy").to_event(actor="scheduler")])
    decode(recorded)                                            # → StatusChanged(status="busy", …)

They are a vocabulary, not a rule: any other type of event may be written beside them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from perdure.engine.changes import Change
from perdure.engine.event import Event
from perdure.errors import InvalidEvent

__all__ = [
    "TYPES",
    "AgentEvent",
    "CapabilityAdded",
    "CapabilityRemoved",
    "ConfigurationUpdated",
    "ErrorOccurred",
    "InstanceCreated",
    "MigrationCompleted",
    "MigrationStarted",
    "ResourceAllocated",
    "ResourceDeallocated",
    "SnapshotCreated",
    "StatusChanged",
    "TaskAssigned",
    "TaskCompleted",
    "decode",
]

_HISTORY: Final = ("execution_state", "task_history")
_CURRENT_TASK: Final = ("execution_state", "current_task")


class AgentEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the thirteen have in common. Fields are the event's `data`; fields that a reader does not know are ignored."""

    type_name: ClassVar[str] = ""
    schema_version: ClassVar[int] = 1

    def changes(self) -> tuple[Change, ...]:
        """What the event does to the agent's state."""
        return ()

    def to_event(self, **envelope: Any) -> Event:
        """The event to append. envelope: any other fields of `Event`, e.g. id, source, actor, correlation_id, metadata."""
        data = msgspec.to_builtins(self, builtin_types=(bytes,))
        return Event(self.type_name, changes=self.changes(), data=data, schema_version=self.schema_version, **envelope)


class InstanceCreated(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent began."""

    type_name: ClassVar[str] = "instance_created"
    status: str = "created"
    configuration: dict[str, Any] = {}
    capabilities: dict[str, dict[str, Any]] = {}
    resource_allocation: dict[str, Any] = {}

    def changes(self) -> tuple[Change, ...]:
        return (
            Change("set", ("status",), self.status),
            Change("set", ("configuration",), self.configuration),
            Change("set", ("capabilities",), self.capabilities),
            Change("set", ("resource_allocation",), self.resource_allocation),
        )


class StatusChanged(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent's operational status is another."""

    type_name: ClassVar[str] = "status_changed"
    status: str
    reason: str | None = None

    def changes(self) -> tuple[Change, ...]:
        return (Change("set", ("status",), self.status),)


class ConfigurationUpdated(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The configuration changed. patch: an RFC 7396 merge patch of it."""

    type_name: ClassVar[str] = "configuration_updated"
    patch: dict[str, Any]

    def changes(self) -> tuple[Change, ...]:
        return (Change("merge", ("configuration",), self.patch),)


class CapabilityAdded(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent can do something more. capability: version, description, parameters and what else describes it."""

    type_name: ClassVar[str] = "capability_added"
    name: str
    capability: dict[str, Any] = {}

    def changes(self) -> tuple[Change, ...]:
        return (Change("set", ("capabilities", self.name), self.capability),)


class CapabilityRemoved(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent can no longer do something."""

    type_name: ClassVar[str] = "capability_removed"
    name: str
    reason: str | None = None

    def changes(self) -> tuple[Change, ...]:
        return (Change("delete", ("capabilities", self.name)),)


class TaskAssigned(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent has a task."""

    type_name: ClassVar[str] = "task_assigned"
    task_id: str
    task: Any = None

    def changes(self) -> tuple[Change, ...]:
        return (Change("set", _CURRENT_TASK, self.task_id),)


class TaskCompleted(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent's task has ended. duration_s: seconds."""

    type_name: ClassVar[str] = "task_completed"
    task_id: str
    outcome: str = "completed"
    duration_s: int | float | None = None
    result: Any = None

    def changes(self) -> tuple[Change, ...]:
        record = {"task_id": self.task_id, "outcome": self.outcome}
        optional = {"duration_s": self.duration_s, "result": self.result}
        known = {name: value for name, value in optional.items() if value is not None}
        return (Change("append", _HISTORY, {**record, **known}), Change("delete", _CURRENT_TASK))


class ErrorOccurred(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """Something failed in the agent."""

    type_name: ClassVar[str] = "error_occurred"
    code: str
    message: str = ""
    task_id: str | None = None
    details: Any = None

    def changes(self) -> tuple[Change, ...]:
        return (Change("set", ("execution_state", "process_state", "last_error"), {"code": self.code, "message": self.message}),)


class ResourceAllocated(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent may use a resource. amount: what it now has of it, in all."""

    type_name: ClassVar[str] = "resource_allocated"
    resource: str
    amount: Any

    def changes(self) -> tuple[Change, ...]:
        return (Change("set", ("resource_allocation", self.resource), self.amount),)


class ResourceDeallocated(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent may no longer use a resource."""

    type_name: ClassVar[str] = "resource_deallocated"
    resource: str

    def changes(self) -> tuple[Change, ...]:
        return (Change("delete", ("resource_allocation", self.resource)),)


class SnapshotCreated(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot of the agent was stored. version: the agent's version that it holds. It changes no state."""

    type_name: ClassVar[str] = "snapshot_created"
    snapshot_id: str
    version: int
    trigger: str | None = None


class MigrationStarted(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent is being moved to another host. It changes no state."""

    type_name: ClassVar[str] = "migration_started"
    migration_id: str
    source: str
    target: str


class MigrationCompleted(AgentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The agent was moved. downtime_ms: how long it took no commands, milliseconds. It changes no state."""

    type_name: ClassVar[str] = "migration_completed"
    migration_id: str
    target: str
    success: bool = True
    downtime_ms: int | float | None = None


TYPES: Final[dict[str, type[AgentEvent]]] = {
    kind.type_name: kind
    for kind in (
        InstanceCreated,
        StatusChanged,
        ConfigurationUpdated,
        CapabilityAdded,
        CapabilityRemoved,
        TaskAssigned,
        TaskCompleted,
        ErrorOccurred,
        ResourceAllocated,
        ResourceDeallocated,
        SnapshotCreated,
        MigrationStarted,
        MigrationCompleted,
    )
}
"""The thirteen by the names under which they are recorded."""


def decode(event: Event) -> AgentEvent | None:
    """The typed form of an event's data; None for any other type of event. Raises InvalidEvent where the data does not fit the type."""
    kind = TYPES.get(event.type)
    if kind is None:
        return None
    try:
        return msgspec.convert(event.data, kind)
    except msgspec.ValidationError as error:
        raise InvalidEvent(f"the data of a {event.type} event does not fit: {error}") from error
