"""perdure transfer plan | run | resume | abort | list | show | forward | erase"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Group, Parameter

from perdure.cli.chosen import ApprovalId, Yes
from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, plain, size, table
from perdure.engine.log.records import AgentName
from perdure.errors import ConfigurationError, InvalidInput, NotFound
from perdure.limits import TRANSFER_AGENTS_AT_ONCE_DEFAULT

if TYPE_CHECKING:
    from perdure.client.engine import Engine
    from perdure.migration.transfer.records import TransferRecord
    from perdure.migration.transfer.runs import Report

__all__ = ["app"]

app = App(name="transfer", help="Move agents to another engine: plan, run, resume, abort, list, show, forward, erase.")

_FAILED: Final = 1
_TARGET: Final = Group("The engine that they go to", sort_key=90)
_FAILURES_SHOWN: Final = 20
RATE_SHOWN_MIN: Final = 0.01
"""GB/min; a few small agents say nothing of how fast large ones move."""


def _to(text: str) -> Parameter:
    return Parameter(help=text, group=_TARGET, show_default=False, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Where agents go; what is not given is the target's own default, never this engine's."""

    to_log: Annotated[str | None, _to("URL of its log: sqlite:///FOLDER or postgresql://…")] = None
    to_bus: Annotated[str | None, _to("URL of its bus")] = None
    to_cache: Annotated[str | None, _to("URL of its cache")] = None
    to_store: Annotated[str | None, _to("URL of its snapshots")] = None
    to_keys: Annotated[str | None, _to("URL of its root key")] = None
    to_config: Annotated[Path | None, _to("Its settings file")] = None


NOWHERE: Final = Target()
Agents = Annotated[str | None, Parameter(help="Ids with commas between them [default: all of the tenant].")]
AllTenants = Annotated[bool, Parameter(help="The agents of every tenant.", negative=())]
AtOnce = Annotated[int, Parameter(help="Agents that are moved at once.")]


@contextlib.asynccontextmanager
async def _both(options: Options, target: Target) -> AsyncIterator[tuple[Engine, Engine]]:
    import perdure
    from perdure import config

    if target.to_log is None and target.to_config is None:
        raise InvalidInput("the target is not named", hint="give --to-log URL and --to-keys URL, or --to-config FILE")
    flags = {"log": target.to_log, "bus": target.to_bus, "cache": target.to_cache, "store": target.to_store, "keys": target.to_keys}
    # Neither environment nor settings file of this engine: what stands there is not the target's.
    flags["config"] = os.devnull if target.to_config is None else str(target.to_config)
    settings = config.load({name: value for name, value in flags.items() if value is not None}, {})
    if target.to_keys is None and target.to_config is None and not str(settings.log.value).startswith("sqlite:"):
        hint = "give --to-keys URL, e.g. file:///PATH/root.key: this machine's own default is another engine's"
        raise InvalidInput("the root key of the target is not named", hint=hint)
    async with session(options) as source, contextlib.AsyncExitStack() as stack:
        try:
            there = await stack.enter_async_context(perdure.open(settings=settings, create=False))
        except ConfigurationError as problem:
            hint = problem.hint
            if "perdure init" in hint:
                hint = "check --to-log, or make the log: perdure init --log URL --keys URL"
            raise ConfigurationError(f"the target: {problem.message}", hint=hint) from problem
        yield source, there


def _chosen(agents: str | None, all_tenants: bool, options: Options) -> tuple[list[AgentName] | None, str | None]:
    if agents is None:
        return None, None if all_tenants else options.tenant_name
    if all_tenants:
        raise InvalidInput("--agents and --all-tenants exclude each other")
    return [AgentName(options.tenant_name, agent.strip()) for agent in agents.split(",") if agent.strip()], None


@app.command
async def plan(*, agents: Agents = None, all_tenants: AllTenants = False, to: Target = NOWHERE, options: Options = DEFAULTS) -> int:
    """What would move, and what prevents it. Exit code 1 if something does."""
    names, tenant = _chosen(agents, all_tenants, options)
    async with _both(options, to) as (source, there):
        made = await source.transfers.plan(there, names, tenant=tenant)
    room = "what the target has left is not known" if made.room_bytes is None else f"{size(made.room_bytes)} are free there"
    lines = [f"{count(made.agents)} agents with {count(made.events)} events, about {size(made.bytes)}, would move to {made.to}; {room}"]
    lines += [f"  AGAINST IT  {problem}" for problem in made.problems]
    emit(plain(made), as_json=options.json, text="\n".join(lines))
    return _FAILED if made.problems else 0


@app.command
async def run(
    *,
    agents: Agents = None,
    all_tenants: AllTenants = False,
    address: Annotated[str, Parameter(help="Where clients are sent to [default: the target's log, without its password].")] = "",
    at_once: AtOnce = TRANSFER_AGENTS_AT_ONCE_DEFAULT,
    to: Target = NOWHERE,
    options: Options = DEFAULTS,
) -> int:
    """Move agents with their whole history. Exit code 1 if one of them stayed."""
    names, tenant = _chosen(agents, all_tenants, options)
    async with _both(options, to) as (source, there):
        with Progress("transfer", quiet=options.json) as progress:
            done = await source.transfers.run(
                there, names, tenant=tenant, address=address, at_once=at_once, progress=lambda report: progress(report.events)
            )
    return _tell(done, options)


@app.command
async def resume(*, at_once: AtOnce = TRANSFER_AGENTS_AT_ONCE_DEFAULT, to: Target = NOWHERE, options: Options = DEFAULTS) -> int:
    """Finish interrupted transfers to this target, from where they stopped."""
    async with _both(options, to) as (source, there):
        with Progress("transfer", quiet=options.json) as progress:
            done = await source.transfers.resume(there, at_once=at_once, progress=lambda report: progress(report.events))
    return _tell(done, options)


@app.command
async def abort(*, agents: Agents = None, to: Target = NOWHERE, options: Options = DEFAULTS) -> None:
    """Abort transfers that are not committed; these agents are served here again."""
    names = None if agents is None else _chosen(agents, False, options)[0]
    async with _both(options, to) as (source, there):
        done = await source.transfers.abort(there, names)
    lines = [f"{amount(len(done), 'transfer')} taken back", *(f"  {each.tenant}/{each.agent}" for each in done)]
    text = "\n".join(lines) if done else "no transfer to there is under way"
    emit({"aborted": plain(done)}, as_json=options.json, text=text)


@app.command(name="list")
async def list_(*, options: Options = DEFAULTS) -> None:
    """Agents that left, are leaving or have come back."""
    async with session(options, create=False) as engine:
        found = await engine.transfers.list()
    rows = [(each.tenant, each.agent, each.phase, each.address, count(each.events), size(each.bytes)) for each in found]
    text = table(("TENANT", "AGENT", "PHASE", "TO", "EVENTS", "BYTES"), rows) if rows else "no agent was ever moved from here"
    emit({"transfers": plain(found)}, as_json=options.json, text=text)


@app.command
async def show(agent: str, /, *, options: Options = DEFAULTS) -> None:
    """The agent's newest transfer."""
    async with session(options) as engine:
        found = await engine.transfers.show(AgentName(options.tenant_name, agent))
    emit(plain(found), as_json=options.json, text=_described(found))


@app.command
async def forward(agent: str, /, *, options: Options = DEFAULTS) -> None:
    """The address that the agent has moved to."""
    async with session(options) as engine:
        address = await engine.transfers.forward(AgentName(options.tenant_name, agent))
    if address is None:
        raise NotFound(f"agent {agent!r} has not moved", tenant=options.tenant_name, agent=agent)
    emit({"tenant": options.tenant_name, "agent": agent, "address": address}, as_json=options.json, text=address)


@app.command
async def erase(
    *,
    agents: Annotated[str, Parameter(help="Ids with commas between them.")],
    yes: Yes = False,
    approval: ApprovalId = None,
    options: Options = DEFAULTS,
) -> None:
    """Destroy this engine's keys of agents that have moved away. Its copy of them can never be read again."""
    names, _ = _chosen(agents, False, options)
    told = {"tenant": options.tenant_name, "agents": [name.agent for name in names or []]}
    async with session(options) as engine, engine.approvals.guard("transfers.erase", told, yes=yes, approval=approval) as passage:
        done = await engine.transfers.erase(names or [])
        passage.outcome = {"erased": [each.agent for each in done]}
    text = "\n".join([f"keys destroyed: those of {amount(len(done), 'agent')}", *(f"  {each.tenant}/{each.agent}" for each in done)])
    emit({"erased": plain(done)}, as_json=options.json, text=text)


def _tell(done: Report, options: Options) -> int:
    if not done.agents:
        emit(plain(done), as_json=options.json, text=f"there is nothing to move to {done.to}")
        return 0
    rate = done.bytes / max(done.duration_s, 1e-9) * 60 / 1e9
    worst = f", {done.downtime_ms[-1]:.0f} ms without answers at most" if done.downtime_ms else ""
    lines = [
        f"{count(done.moved)} of {count(done.agents)} agents are at {done.to}: {amount(done.events, 'event')}, {size(done.bytes)} in "
        f"{done.duration_s:.1f} s{f' ({rate:.2f} GB/min)' if rate >= RATE_SHOWN_MIN else ''}{worst}"
    ]
    stayed = [each for each in done.records if each.phase != "moved"]
    lines += [f"  {each.tenant}/{each.agent} {_stayed(each)}: {each.problem}" for each in stayed[:_FAILURES_SHOWN]]
    emit(plain(done), as_json=options.json, text="\n".join(lines))
    return _FAILED if done.failed else 0


def _stayed(record: TransferRecord) -> str:
    return "stays here" if record.phase == "aborted" else "is on its way (`perdure transfer resume`)"


def _described(record: TransferRecord) -> str:
    facts = (
        ("phase", record.phase),
        ("to", record.address),
        ("events", f"{count(record.events)}, {size(record.bytes)}, {amount(record.rounds, 'round')}"),
        ("downtime", f"{record.downtime_us / 1e3:.1f} ms"),
        ("compared", f"version {record.version}, chain {record.chain[:16]}…, state {record.digest[:16]}…"),
        ("problem", record.problem or "none"),
    )
    return "\n".join([f"{record.tenant}/{record.agent}, transfer {record.id}", *(f"  {name:<9} {value}" for name, value in facts)])
