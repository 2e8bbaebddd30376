"""perdure recover watch | nodes | list | show | diagnose | run | auto | promote"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, emit, plain, table
from perdure.cli.run import stop_signals
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput

__all__ = ["app"]

app = App(name="recover", help="Nodes and failures: watch, nodes, list, show, diagnose, run, auto, promote.")


@app.command
async def watch(*, options: Options = DEFAULTS) -> None:
    """Reassign the agents of lost nodes, until it is stopped. Several may watch; one leads."""
    async with session(options) as engine:
        with stop_signals() as stop:
            print("watching; Ctrl-C ends it", file=sys.stderr, flush=True)
            await engine.recovery.watch(stop)
    emit({"watched": True}, as_json=options.json, text="done")


@app.command
async def nodes(*, options: Options = DEFAULTS) -> None:
    """All nodes, their state (alive, ended in order, or lost), and how many agents each owns."""
    async with session(options) as engine:
        rows = [
            {**plain(each.node), "alive": each.alive, "state": each.word, "agents": await engine.log.store.count_owned(each.node.name)}
            for each in await engine.recovery.nodes()
        ]
    lines = [(row["name"], row["state"], row["agents"], row["address"]) for row in rows]
    text = table(("NODE", "STATE", "AGENTS", "ADDRESS"), lines) if rows else "no node has announced itself"
    emit({"nodes": rows}, as_json=options.json, text=text)


@app.command(name="list")
async def list_(*, limit: int = 50, options: Options = DEFAULTS) -> None:
    """The newest entries of the recovery journal, newest first."""
    async with session(options) as engine:
        entries = [plain(entry) for entry in await engine.recovery.journal(limit=limit)]
    emit({"entries": entries}, as_json=options.json, text=_lines(entries) or "nothing was recovered yet")


@app.command
async def show(recovery: str, /, *, options: Options = DEFAULTS) -> None:
    """All journal entries of one recovery."""
    async with session(options) as engine:
        entries = [plain(entry) for entry in await engine.recovery.monitor_recovery(recovery)]
    emit({"entries": entries}, as_json=options.json, text=_lines(entries))


@app.command
async def diagnose(agent: str, /, *, options: Options = DEFAULTS) -> int:
    """What is wrong with an agent, and what would be done; nothing is changed. Exit code 1 if something is wrong."""
    async with session(options) as engine:
        plan = await engine.recovery.plan_recovery(AgentName(options.tenant_name, agent))
    report = plan.report
    wrong = [f"  {failure.kind}: {failure.evidence}" for failure in report.failures]
    steps = [f"  {number}. {step}" for number, step in enumerate(plan.steps, 1)]
    text = "\n".join([f"{agent} is not well:", *wrong, f"strategy {plan.strategy}:", *steps]) if wrong else f"{agent} is well"
    emit(plain(plan), as_json=options.json, text=text)
    return 1 if wrong else 0


@app.command
async def run(
    agent: str,
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="Say what would be done.", negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """Diagnose an agent and repair what is wrong."""
    async with session(options) as engine:
        plan = await engine.recovery.plan_recovery(AgentName(options.tenant_name, agent))
        if dry_run:
            emit(
                {"plan": plain(plan)}, as_json=options.json, text=f"{agent}: would {plan.strategy}: {'; '.join(plan.steps) or 'do nothing'}"
            )
            return
        result = await engine.recovery.execute_recovery(plan)
    emit({"plan": plain(plan), "result": plain(result)}, as_json=options.json, text=f"{agent}: {result.strategy}: {result.detail}")


@app.command
async def auto(
    agent: str,
    what: Annotated[str, Parameter(help="show, on or off.")] = "show",
    /,
    *,
    retries: Annotated[int, Parameter(help="Further tries after the first.")] = 5,
    backoff_s: Annotated[float, Parameter(help="Seconds before the second try; they double with each.")] = 1.0,
    options: Options = DEFAULTS,
) -> None:
    """Show an agent's auto-recovery, or turn it `on` (with retries and backoff) or `off`."""
    name = AgentName(options.tenant_name, agent)
    async with session(options) as engine:
        if what == "on":
            policy = await engine.recovery.enable_auto_recovery(name, retries=retries, backoff_s=backoff_s)
        elif what == "off":
            policy = await engine.recovery.disable_auto_recovery(name)
        elif what == "show":
            policy = await engine.recovery.auto_recovery(name)
        else:
            raise InvalidInput(f"auto-recovery cannot be {what!r}", hint="on, off or show")
    state = "on" if policy.enabled else "off"
    text = f"{agent}: auto-recovery is {state}, {policy.retries} retries, the first after {policy.backoff_s:g} s"
    emit({"agent": agent, "policy": plain(policy)}, as_json=options.json, text=text)


@app.command
async def promote(
    *,
    yes: Annotated[bool, Parameter(help="Do it.", negative=())] = False,
    dry_run: Annotated[bool, Parameter(help="Say what would come of it.", negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """After an older copy of the log's database was put in its place, or a standby took over: begin a new generation, take from the topic what
    the log lacks, and say what is lost. Stop all other processes first."""
    from perdure.client.promotion import promote as work

    if yes == dry_run:
        raise InvalidInput("a promotion begins a new generation of the log", hint="give --dry-run to see what is lost, --yes to do it")
    with Progress("promote", quiet=options.json, unit="partitions") as progress:
        done = await work(options.settings(), dry_run=dry_run, progress=progress)
    verb = "would be" if done.dry_run else "is"
    lines = [
        f"the log {verb} of generation {done.generation}",
        f"from the topic: {amount(done.brought, 'event')} of {amount(done.agents, 'agent')} that it lacked",
        f"lost: {amount(done.lost_events, 'event')}" if done.lost_events else "nothing is known to be lost",
        *(f"  {each.tenant}/{each.agent}: versions {each.first_version} to {each.last_version}: {each.reason}" for each in done.lost),
    ]
    if not done.topic_sound:
        lines.append("the topic holds what the log does not: delete it, or name another in PERDURE_BUS; the relay fills the new one")
    emit(plain(done), as_json=options.json, text="\n".join(lines))


def _lines(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return ""
    rows = [(entry["time"], entry["type"], entry["recovery"][-8:], _facts(entry["data"])) for entry in entries]
    return table(("TIME", "WHAT", "RECOVERY", "FACTS"), rows)


def _facts(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in data.items() if value not in ("", None, []))
