"""perdure snapshot create | list | show, and what `snapshot_keep` adds"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from cyclopts import App, Parameter

from perdure.cli.chosen import Done, Parallel, chosen, for_each
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, plain, share_saved, size, table
from perdure.cli.render import pretty
from perdure.cli.snapshot_keep import clean, compress, delete, sweep, verify
from perdure.cli.times import parse_time
from perdure.errors import InvalidInput

if TYPE_CHECKING:
    from perdure.client.engine import Engine
    from perdure.client.snapshot_facts import Made, Snapshot
    from perdure.engine.log.records import AgentName

__all__ = ["app"]

app = App(name="snapshot", help="Snapshots of agents' states: create, list, show, verify, delete, clean, compress, sweep.")
_FLAG: Final = Parameter(negative=())
PARALLEL: Final = 4


@app.command
async def create(
    *agents: str,
    all: Annotated[bool, _FLAG] = False,
    full: Annotated[bool, _FLAG] = False,
    checkpoint: Annotated[bool, _FLAG] = False,
    at_version: int | None = None,
    codec: str = "zstd",
    reason: str = "",
    expires: str | None = None,
    permanent: Annotated[bool, _FLAG] = False,
    critical: Annotated[bool, _FLAG] = False,
    parallel: Parallel = PARALLEL,
    options: Options = DEFAULTS,
) -> int:
    """Snapshot agents' states. One that is there already is left as it is, and reported.

    Parameters
    ----------
    agents
        The agents; or --all for every one of the tenant.
    all
        Every agent of the tenant that has events.
    full
        Share nothing with the snapshot before it.
    checkpoint
        Keep it until it is deleted by name.
    at_version
        A checkpoint of this version instead of the newest.
    codec
        zstd, lz4, snappy, gzip or none.
    reason
        Why, for people.
    expires
        Keep it until this time at least.
    permanent
        Keep it until it is deleted by name with --even-permanent.
    critical
        Keep it, and what it needs, whatever a retention policy says.
    """
    if at_version is not None and (all or not checkpoint):
        raise InvalidInput("--at-version goes with --checkpoint and named agents")
    if checkpoint and (full or expires or permanent or critical):
        raise InvalidInput("--checkpoint goes with --at-version, --codec and --reason", hint="a checkpoint stays anyway")
    until = parse_time(expires) if expires else None
    async with session(options) as engine:

        async def make(name: AgentName) -> Made | None:
            if checkpoint:
                return await engine.snapshots.create_checkpoint(name, version=at_version, codec=codec, reason=reason, creator="cli")
            if all and not (await _version(engine, name)):
                return None
            return await engine.snapshots.create_snapshot(
                name, full=full, codec=codec, creator="cli", reason=reason, expires=until, permanent=permanent, critical=critical
            )

        with Progress("snapshots", quiet=options.json, unit="agents") as progress:
            names = chosen(engine, options.tenant_name, agents, every=all)
            done = await for_each(names, make, parallel=parallel, progress=progress)
    return _report_made(done, options)


async def _version(engine: Engine, name: AgentName) -> int:
    return await engine.log.version(name)


def _report_made(done: Done, options: Options) -> int:
    made: list[Made] = [each for each in done.results if each is not None]
    new = [each.snapshot for each in made if not each.already]
    plain_bytes, written_bytes = sum(each.plain_bytes for each in new), sum(each.written_bytes for each in new)
    facts = {
        "tenant": options.tenant_name,
        "made": len(new),
        "already": len(made) - len(new),
        "failed": done.failed,
        "plain_bytes": plain_bytes,
        "stored_bytes": sum(each.stored_bytes for each in new),
        "written_bytes": written_bytes,
        "snapshots": [{**_facts(each.snapshot), "already": each.already, "warnings": each.warnings} for each in made],
    }
    saved = 1 - written_bytes / plain_bytes if plain_bytes else 0.0
    text = (
        f"{amount(len(new), 'snapshot')} made ({size(plain_bytes)} of states in {size(written_bytes)}, {share_saved(saved)} saved),"
        f" {count(len(made) - len(new))} there already"
    )
    failures = "".join(f"\n  {agent}: {problem}" for agent, problem in done.failed.items())
    emit(facts, as_json=options.json, text=text + (f"\n{count(done.failures)} failed:{failures}" if done.failures else ""))
    return done.code


@app.command(name="list")
async def list_(agent: str | None = None, /, *, limit: int = 100, options: Options = DEFAULTS) -> None:
    """The snapshots of an agent, newest version first, or of the whole tenant, roughly in order of creation.

    Parameters
    ----------
    agent
        Only this one's.
    limit
        At most so many.
    """
    listed: list[Snapshot] = []
    if limit < 1:
        raise InvalidInput(f"--limit {limit}")
    async with session(options) as engine:
        if agent is not None:
            listed = await engine.snapshots.list_snapshots((engine.agent(agent, tenant=options.tenant_name)).name, limit=limit)
        else:
            async for each in engine.snapshots.all_snapshots(options.tenant_name):
                listed.append(each)
                if len(listed) == limit:
                    break
    rows = [
        (each.id, each.agent, each.version, each.kind, _flags(each), size(each.plain_bytes), share_saved(each.saved), plain(each.created))
        for each in listed
    ]
    headings = ("ID", "AGENT", "VERSION", "KIND", "STAYS", "STATE", "SAVED", "CREATED")
    text = table(headings, rows) if rows else "no snapshots"
    emit({"tenant": options.tenant_name, "snapshots": [_facts(each) for each in listed]}, as_json=options.json, text=text)


def _flags(snapshot: Snapshot) -> str:
    words = [word for word, holds in (("permanent", snapshot.permanent), ("critical", snapshot.critical)) if holds]
    if snapshot.expires is not None:
        words.append(f"until {plain(snapshot.expires)[:16]}")
    if snapshot.damage:
        words.append("DAMAGED")
    return ",".join(words) or "-"


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    facts: dict[str, Any] = {**plain(snapshot), "saved": round(snapshot.saved, 4)}
    return facts


@app.command
async def show(id: UUID, /, *, options: Options = DEFAULTS) -> None:
    """Everything registered about a snapshot."""
    async with session(options) as engine:
        snapshot = await engine.snapshots.get_snapshot(options.tenant_name, id)
    emit(_facts(snapshot), as_json=options.json, text=pretty(_facts(snapshot)))


for _command in (verify, delete, clean, compress, sweep):
    app.command(_command)
