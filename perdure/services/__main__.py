"""python -m perdure.services up|down|status|logs|build: the services without the rest of the product."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from perdure import services
from perdure.errors import PerdureError
from perdure.processes import reader_gone
from perdure.services import s3
from perdure.services.model import ALL_NAMES, NAMES, Services

UNAVAILABLE = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the error's own."""
    options = _parser().parse_args(arguments)
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return reader_gone()
    except PerdureError as error:
        if options.json:
            print(_json(error.as_dict()))
        else:
            print(f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    if options.command == "build":
        s3.build(lambda line: print(line, file=sys.stderr, flush=True))
        return 0
    if options.command == "logs":
        text = services.logs(options.root, options.name, options.lines)
        print(_json({"name": options.name, "log": text}) if options.json else text)
        return 0
    if options.command == "down":
        services.down(options.root, wipe=options.wipe)
        found = services.status(options.root)
    elif options.command == "up":
        found = services.up(
            root=options.root,
            only=options.only or NAMES,
            kafka_brokers=options.kafka_brokers,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    else:
        found = services.status(options.root)
    _show(found, options.json)
    healthy = bool(found.all()) and all(service.running for service in found.all())
    return UNAVAILABLE if options.command == "status" and not healthy else 0


def _show(found: Services, as_json: bool) -> None:
    if as_json:
        print(_json({"services": found, "environment": found.environment()}))
        return
    for service in found.all():
        state = f"runs, pid {', '.join(map(str, service.pids))}" if service.pids else "runs" if service.running else "stopped"
        print(f"# {service.name} {service.version} ({service.origin}): {state}")
    for key, value in found.environment(running=True).items():
        print(f"export {key}={shlex.quote(value)}")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, help="folder of the services (default: $PERDURE_SERVICES or the user's data folder)")
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(prog="python -m perdure.services", description=(__doc__ or "").partition(":")[2].strip())
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="start what does not run")
    up.add_argument("--only", action="append", choices=ALL_NAMES, help="only this one; may be repeated; s3 starts only when it is named")
    up.add_argument("--kafka-brokers", type=int, default=1, choices=(1, 3))
    down = commands.add_parser("down", parents=[common], help="stop what was started here")
    down.add_argument("--wipe", action="store_true", help="delete all data as well")
    commands.add_parser("status", parents=[common], help="what runs, and where")
    commands.add_parser("build", parents=[common], help="build what is built once: versitygw, where there is Go")
    logs = commands.add_parser("logs", parents=[common], help="the end of a server's log")
    logs.add_argument("name", choices=ALL_NAMES)
    logs.add_argument("--lines", type=int, default=100)
    return parser


if __name__ == "__main__":
    sys.exit(main())
