"""perdure services up | down | status | logs"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, Parameter

from perdure import services as library
from perdure.cli.options import DEFAULTS, Options
from perdure.cli.output import emit
from perdure.services.model import NAMES

__all__ = ["app"]

app = App(name="services", help="Local Postgres, Redis, Kafka and S3 for development: up, down, status, logs.")

Name = Literal["postgres", "redis", "kafka", "s3"]
Root = Annotated[Path | None, Parameter(help="Folder of the services [PERDURE_SERVICES; default: in the user's data folder].")]
_UNAVAILABLE: Final = 6


@app.command
def up(*, only: tuple[Name, ...] = (), kafka_brokers: Literal[1, 3] = 1, root: Root = None, options: Options = DEFAULTS) -> None:
    """Start the servers that are not running, wait until they answer, and print their URLs.

    Parameters
    ----------
    only
        Only this one; may be repeated. s3 starts only when it is named.
    kafka_brokers
        Brokers of the Kafka cluster.
    """
    found = library.up(root=root, only=only or NAMES, kafka_brokers=kafka_brokers, progress=_tell)
    _show(found, options)


@app.command
def down(*, wipe: Annotated[bool, Parameter(negative=())] = False, root: Root = None, options: Options = DEFAULTS) -> None:
    """Stop what was started here.

    Parameters
    ----------
    wipe
        Delete all data as well.
    """
    library.down(root, wipe=wipe)
    _show(library.status(root), options)


@app.command
def status(*, root: Root = None, options: Options = DEFAULTS) -> int:
    """Which servers run, and where. Exit code 6 unless all that were started run."""
    found = library.status(root)
    _show(found, options)
    return 0 if found.all() and all(service.running for service in found.all()) else _UNAVAILABLE


@app.command
def logs(
    name: Name, /, *, lines: Annotated[int, Parameter(help="How many lines of it.")] = 100, root: Root = None, options: Options = DEFAULTS
) -> None:
    """The end of a server's log."""
    text = library.logs(root, name, lines)
    emit({"name": name, "log": text}, as_json=options.json, text=text)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(found: library.Services, options: Options) -> None:
    lines = [f"# {s.name} {s.version} ({s.origin}): {'runs' if s.running else 'stopped'}" for s in found.all()]
    exports = [f"export {key}={shlex.quote(value)}" for key, value in found.environment(running=True).items()]
    facts = {"services": {service.name: service for service in found.all()}, "environment": found.environment()}
    emit(facts, as_json=options.json, text="\n".join([*lines, *exports]) or "# nothing was started here")
