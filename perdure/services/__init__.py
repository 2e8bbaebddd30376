"""Real Postgres, Redis, Kafka and, when it is asked for, S3 on this machine, for developers, tests, benchmarks and the demo.

`up()` starts what does not run and tells the URLs; the servers outlive the caller, until `down()`. `stop()` and `start()`
control one of them, for tests of failures. All calls block; they may be used inside a running event loop, which they hold up.
Only processes that were started here are ever signalled.
"""

from __future__ import annotations

from perdure.services.manager import down, logs, start, status, stop, up
from perdure.services.model import How, Service, Services
from perdure.services.state import default_root

__all__ = ["How", "Service", "Services", "default_root", "down", "logs", "start", "status", "stop", "up"]
