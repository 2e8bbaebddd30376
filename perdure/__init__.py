"""perdure: the state engine under AI agents.

async with perdure.open("sqlite:///./state") as engine:
    agent = engine.agent("support-17", tenant="acme")
    await agent.append(perdure.Event("message_added", changes=[perdure.append("/messages", message)]))
    state = await agent.state()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.engine.changes import Change, append, delete, insert, merge, set_value
from perdure.engine.event import Event, RecordedEvent
from perdure.engine.log.expected import ANY, NO_STREAM, STREAM_EXISTS
from perdure.engine.log.records import AgentName
from perdure.engine.readonly import thaw
from perdure.errors import PerdureError
from perdure.limits import PARTITIONS_DEFAULT

if TYPE_CHECKING:
    from perdure.client.engine import Opening
    from perdure.config import Settings

__all__ = [
    "ANY",
    "NO_STREAM",
    "STREAM_EXISTS",
    "AgentName",
    "Change",
    "Event",
    "PerdureError",
    "RecordedEvent",
    "append",
    "delete",
    "insert",
    "merge",
    "open",
    "set_value",
    "thaw",
]


def open(
    url: str | None = None,
    *,
    bus: str | None = None,
    cache: str | None = None,
    store: str | None = None,
    keys: str | None = None,
    settings: Settings | None = None,
    partitions: int = PARTITIONS_DEFAULT,
    create: bool = True,
) -> Opening:
    """Open an engine: `async with perdure.open(…) as engine`.

    What is not given comes from the environment (PERDURE_LOG and its like), then from perdure.toml, else it is the default.

    url: of the log: `sqlite:///./folder`, `sqlite:////absolute/folder` or `postgresql://…`.
    bus: `memory://` or `kafka://host:port`. cache: `memory://` or `redis://host:port/0`.
    store: of snapshots: `file:///folder` or `s3://bucket/prefix`; an embedded log has its own.
    keys: of the root key: `file:///path`, `env:` or `vault://host:port/key`; made at first use.
    settings: all of these at once, from `perdure.config.load`, in their place.
    partitions: of a log that is made now; one that is there keeps its own.
    create: make or migrate the log where that is needed; else a log that is missing or older is an error.

    Raises ConfigurationError for what cannot be, MissingDependency, UnsafeSettings, and Unavailable where a server does not answer.
    """
    # Imported here, so that `import perdure` and the command's help stay quick.
    from perdure import config
    from perdure.client.engine import Opening

    settings = settings or config.load({"log": url, "bus": bus, "cache": cache, "store": store, "keys": keys})
    return Opening(settings, partitions=partitions, create=create)
