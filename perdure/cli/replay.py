"""perdure replay | rollback"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter

from perdure.cli.chosen import Actor, ApprovalId, DryRun, Yes, chosen, for_each, must_mean_it
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, emit, emit_line, plain, table
from perdure.cli.render import event_fields, event_line, pretty
from perdure.cli.times import parse_time
from perdure.client.approvals import acting
from perdure.engine.log.records import AgentName, rfc3339
from perdure.errors import Compacted, InvalidInput, VersionNotFound
from perdure.recovery.timeline import parse_speed
from perdure.recovery.travel import Arrived

if TYPE_CHECKING:
    from perdure.client.engine import Engine

__all__ = ["replay", "rollback"]

PARALLEL = 8
_FAILED = 1


async def replay(
    *agents: str,
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    to_version: int | None = None,
    to_time: str | None = None,
    since: str | None = None,
    type: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    speed: str | None = None,
    into: Literal["view", "fork", "rollback"] = "view",
    suffix: str = "",
    actor: Actor = None,
    reason: str = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> int:
    """The state at a version or time; or, with --speed, events replayed in real time. A replay only reads.

    Parameters
    ----------
    agents
        Which agents.
    every
        Every agent of the tenant. Those that did not exist then, or have fewer versions, are counted.
    to_version
        To this version.
    to_time
        To this moment: RFC 3339, a date, or how long ago (15m, 2h, 3d).
    since
        With --speed: begin at this time.
    type
        With --speed: only events of this type; may be repeated.
    speed
        Stream the tenant's events (or those of the named agents) as they happened: 1x, 10x, max.
    into
        view prints the state; fork makes a new agent of each (see --suffix); rollback leads each back by an event (needs --yes).
    suffix
        With --into fork: what is put behind the names of the new agents.
    reason
        Why; stands in the events.
    """
    if speed is not None:
        if into != "view" or to_version is not None:
            raise InvalidInput("--speed shows events", hint="leave --into and --to-version off; --to-time ends it")
        return await _stream(set(agents), speed, since, to_time, type, options)
    must_mean_it(yes or into != "rollback", dry_run, "this leads agents back by events", approval)
    if (into == "fork") != bool(suffix):
        raise InvalidInput("--into fork and --suffix go together", hint="e.g. --into fork --suffix=-what-if")
    into, who = "view" if dry_run else into, acting(actor)
    told = {"tenant": options.tenant_name, "agents": sorted(agents) or "all", "version": to_version, "time": to_time}
    way = _Way(to_version, None if to_time is None else parse_time(to_time), into, suffix, who, reason, every)
    async with session(options) as engine:
        guard = engine.approvals.guard("agents.rollback", told, actor=who, yes=yes, approval=approval, dry_run=into != "rollback")
        async with guard as passage:
            with Progress("replay", quiet=options.json, unit="agents") as progress:
                names = chosen(engine, options.tenant_name, agents, every=every)
                done = await for_each(names, lambda name: way.go(engine, name), parallel=PARALLEL, progress=progress)
            arrived = sorted((each for each in done.results if isinstance(each, Arrived)), key=lambda each: each.agent)
            not_yet = sorted(each.agent for each in done.results if isinstance(each, AgentName))
            passage.outcome = {"agents": len(arrived), "not_yet": len(not_yet), "failures": done.failures}
    facts = {"agents": plain(arrived), "not_yet": not_yet, "failed": done.failed}
    emit(facts, as_json=options.json, text=_text(arrived, way.tell_not_yet(not_yet), done.failed))
    return _FAILED if done.failures else 0


class _Way(NamedTuple):
    """Where every agent shall go, and how. every: nobody has named them, so that one which has not got so far is no mistake."""

    version: int | None
    time: datetime | None
    into: Literal["view", "fork", "rollback"]
    suffix: str
    actor: str
    reason: str
    every: bool

    async def go(self, engine: Engine, name: AgentName) -> Arrived | AgentName:
        """Where it came to; its name, if it had not got so far yet and nobody has named it."""
        new_agent = f"{name.agent}{self.suffix}" if self.into == "fork" else None
        try:
            return await engine.recovery.replay_to(
                name, version=self.version, time=self.time, into=self.into, new_agent=new_agent, actor=self.actor, reason=self.reason
            )
        except Compacted:  # it was there, and its events were removed
            raise
        except VersionNotFound:
            if not self.every:
                raise
            return name

    def tell_not_yet(self, agents: list[str]) -> list[str]:
        """A line for people, if there are any."""
        has = "has" if len(agents) == 1 else "have"
        then = f"did not exist at {rfc3339(self.time)}" if self.time else f"{has} no version {self.version}"
        return [f"{amount(len(agents), 'agent')} {then}"] if agents else []


async def _stream(agents: set[str], speed: str, since: str | None, until: str | None, types: tuple[str, ...], options: Options) -> int:
    async with session(options) as engine:
        events = engine.recovery.timeline(
            options.tenant_name,
            types=types,
            since=None if since is None else parse_time(since),
            until=None if until is None else parse_time(until),
            speed=parse_speed(speed),
        )
        async for event in events:
            if not agents or event.agent in agents:
                emit_line(event_fields(event), as_json=options.json, text=f"{event.agent}  {event_line(event)}")
    return 0


def _text(arrived: list[Arrived], not_yet: list[str], failed: dict[str, str]) -> str:
    left = [*not_yet, *(f"{agent}: {problem}" for agent, problem in failed.items())]
    if len(arrived) == 1 and not left:
        return _one(arrived[0])
    if not arrived:
        return "\n".join(left) or "no agents"
    rows = [(each.agent, each.version, plain(each.time) or "", each.target, each.appended or "", each.digest[:12]) for each in arrived]
    return "\n".join([table(("AGENT", "VERSION", "TIME", "INTO", "AS VERSION", "DIGEST"), rows), *left])


def _one(arrived: Arrived) -> str:
    words = f"version {arrived.version} of {arrived.agent}"
    if arrived.target:
        return f"{words} stands as version {arrived.appended} of {arrived.target}"
    return f"{words}, of {plain(arrived.time)}\n{pretty(arrived.document)}"


async def rollback(
    agent: str,
    version: int,
    /,
    *,
    actor: Actor = None,
    reason: str = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> None:
    """Return an agent to an earlier version, by an event; its history is kept. --dry-run shows the resulting state."""
    must_mean_it(yes, dry_run, "this leads the agent back by an event", approval)
    who, told = acting(actor), {"tenant": options.tenant_name, "agents": [agent], "version": version, "time": None}
    async with session(options) as engine:
        guard = engine.approvals.guard("agents.rollback", told, actor=who, yes=yes, approval=approval, dry_run=dry_run)
        async with guard as passage:
            done = await engine.recovery.replay_to(
                AgentName(options.tenant_name, agent), version=version, into="view" if dry_run else "rollback", actor=who, reason=reason
            )
            passage.outcome = {"appended": done.appended}
    emit(plain(done), as_json=options.json, text=_one(done))
