"""The table of commands: name, where it is, one line of help. Nothing of a command is imported before it is called."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["COMMANDS", "GLOBAL_FLAGS", "Command", "overview"]


class Command(NamedTuple):
    """One command. target: `module:function` below perdure.cli; group: the heading it is listed under."""

    name: str
    target: str
    help: str
    group: str


MEANING_LEAST: Final = 30
_START, _WRITE, _READ, _OPERATE = "Start", "Write", "Read", "Operate"

COMMANDS: Final = (
    Command("demo", "demo:app", "Many agents, a real crash and time travel; also `demo recovery`, `demo migration`.", _START),
    Command("init", "init:init", "Create what is missing: the log, its keys, the topic.", _START),
    Command("services", "services:app", "Local Postgres, Redis, Kafka and S3 for development: up, down, status, logs.", _START),
    Command("doctor", "doctor:doctor", "Check this installation and the servers that are configured.", _START),
    Command("config", "config:app", "The effective settings, and where each comes from.", _START),
    Command("completion", "completion:completion", "Print the completion script for bash, zsh or fish.", _START),
    Command("version", "version:version", "Versions of perdure, Python and the libraries.", _START),
    Command("import", "import_:import_", "Import conversations as agents; importing a file again adds nothing.", _WRITE),
    Command("append", "append:append", "Append events to an agent.", _WRITE),
    Command("patch", "patch:patch", "Change an agent's state by a merge patch or JSON patch.", _WRITE),
    Command("schemas", "schemas:app", "JSON Schemas that states of an agent type must satisfy.", _WRITE),
    Command("train", "train:train", "Learn a compression dictionary from a tenant's own events.", _WRITE),
    Command("show", "show:show", "An agent's state: now, at a version, or at a time.", _READ),
    Command("log", "log:log", "An agent's events; --follow stays and shows new ones.", _READ),
    Command("diff", "diff:diff", "What changed between two versions of an agent.", _READ),
    Command("blame", "blame:blame", "The event that set a value of the state.", _READ),
    Command("agents", "agents:agents", "The agents of a tenant.", _READ),
    Command("health", "health:health", "An agent's status, its status changes and errors.", _READ),
    Command("export", "export:export", "Events as JSON lines, as `import --format events` reads them.", _READ),
    Command("replay", "replay:replay", "The state at a version or time; or replay events in real time.", _READ),
    Command("rollback", "replay:rollback", "Return an agent to an earlier version, by an event.", _WRITE),
    Command("fork", "fork:app", "Create an agent that continues from another one's version; list forks.", _WRITE),
    Command("run", "run:run", "Relay, projector and snapshotter in one process.", _OPERATE),
    Command("relay", "run:relay", "Publish the log to the bus.", _OPERATE),
    Command("project", "run:project", "Keep the cache up to date from the bus.", _OPERATE),
    Command("host", "host:host", "A node that owns agents and applies commands to them.", _OPERATE),
    Command("migrate", "migrate:app", "Move agents between nodes while they are in use.", _OPERATE),
    Command("transfer", "transfer:app", "Move agents to another engine: other servers, other keys, another region.", _OPERATE),
    Command("recover", "recover:app", "Nodes and failures: watch, diagnose, recover.", _OPERATE),
    Command(
        "snapshot", "snapshot:app", "Snapshots of agents' states: create, list, show, verify, delete, clean, compress, sweep.", _OPERATE
    ),
    Command("restore", "restore:restore", "Restore a verified state: as a view, as a new agent, or as a rollback.", _OPERATE),
    Command("snapshotter", "snapshotter:snapshotter", "Make snapshots of agents that are due.", _OPERATE),
    Command("compact", "compact:compact", "Remove agents' oldest events, which snapshots replace.", _OPERATE),
    Command("scrub", "scrub:scrub", "Check a part of all snapshots, and replace damaged ones.", _OPERATE),
    Command("verify", "verify:verify", "Check chains and seals, and that log, topic and cache agree.", _OPERATE),
    Command("keys", "keys:app", "Tenants' keys: list, rotate.", _OPERATE),
    Command("backup", "backup:app", "Backups of the log: create, list, status, verify, restore, drill, prune.", _OPERATE),
    Command("repair", "repair:repair", "Repair the log from copies that the hash chain proves.", _OPERATE),
    Command("cache", "cache:app", "The cache of current states: status, warm, invalidate.", _OPERATE),
    Command("rebuild", "rebuild:app", "Rebuild the cache while it is read; status, abort.", _OPERATE),
    Command("quarantine", "quarantine:app", "Agents whose projection is halted: list, resolve.", _OPERATE),
    Command("approve", "approvals:approve", "Approve an operation that somebody else asked for.", _OPERATE),
    Command("approvals", "approvals:app", "Pending approvals, and which operations need one.", _OPERATE),
    Command("audit", "approvals:audit", "Who removed what, when, and with which result.", _OPERATE),
)

GLOBAL_FLAGS: Final = (
    ("--log", "URL of the log: sqlite:///FOLDER or postgresql://…"),
    ("--bus", "URL of the bus: memory:// or kafka://HOST:PORT"),
    ("--cache", "URL of the cache: memory:// or redis://HOST:PORT/N"),
    ("--store", "URL of the snapshots: file:///FOLDER or s3://BUCKET/PREFIX"),
    ("--keys", "URL of the root key: file:///PATH, env: or vault://HOST:PORT/KEY"),
    ("--tenant", "Tenant [PERDURE_TENANT; default: default]"),
    ("--config", "Settings file [default: perdure.toml]"),
    ("--json", "Print JSON on stdout, errors as JSON on stderr"),
)


def overview() -> str:
    """The help of `perdure` itself. Written out here because making the parser for it would take longer than reading it."""
    import shutil
    import textwrap

    columns = shutil.get_terminal_size().columns

    def row(name: str, meaning: str) -> str:
        """A name and what it means, wrapped where the terminal ends."""
        indent = " " * (width + 2)
        return textwrap.fill(
            f"  {name:<{width}}{meaning}", max(columns, len(indent) + MEANING_LEAST), subsequent_indent=indent, break_on_hyphens=False
        )

    lines = [
        "Usage: perdure COMMAND [OPTIONS]",
        "",
        textwrap.fill("The state engine under AI agents: an event log with a time machine.", columns),
    ]
    width = max(len(command.name) for command in COMMANDS) + 2
    for group in dict.fromkeys(command.group for command in COMMANDS):
        lines += ["", f"{group}:", *(row(each.name, each.help) for each in COMMANDS if each.group == group)]
    lines += ["", "Options of every command:", *(row(flag, text) for flag, text in GLOBAL_FLAGS)]
    return "\n".join([*lines, "", "perdure COMMAND --help says more about one of them.", ""])
