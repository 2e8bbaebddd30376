"""Which agents a command works on, many at once, and that somebody meant it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from cyclopts import Parameter

from perdure.engine.log.marks import mark_of
from perdure.engine.log.records import AgentName
from perdure.errors import InvalidInput, PerdureError, Unavailable

if TYPE_CHECKING:
    from perdure.cli.output import Progress
    from perdure.client.engine import Engine

__all__ = ["Actor", "ApprovalId", "Done", "DryRun", "Parallel", "Yes", "chosen", "for_each", "must_mean_it"]

AGENTS_PAGE: Final = 500
PARALLEL_MAX: Final = 64
FAILURES_KEPT_MAX: Final = 1_000

Actor = Annotated[str | None, Parameter(help="Who does it; is recorded with it [PERDURE_ACTOR; default: the user of this machine].")]
Yes = Annotated[bool, Parameter(help="Do it: without this nothing is removed.", negative=())]
ApprovalId = Annotated[str | None, Parameter(help="In place of --yes: id of an approval by another person.")]
DryRun = Annotated[bool, Parameter(help="Show what would be done, and do nothing.", negative=())]
Parallel = Annotated[int, Parameter(help="Agents that are worked on at once.")]

T = TypeVar("T")


class Done(msgspec.Struct):
    """What came of many agents. failed: agent and reason, the first ones; failures: all of them. code: the exit code."""

    results: list[Any] = msgspec.field(default_factory=list)
    failed: dict[str, str] = msgspec.field(default_factory=dict)
    failures: int = 0
    code: int = 0


def must_mean_it(yes: bool, dry_run: bool, what: str, approval: str | None = None) -> None:
    """Raises InvalidInput, which says what it would do, unless somebody said so."""
    if not yes and not dry_run and approval is None:
        raise InvalidInput(what, hint="add --yes to do it, or --dry-run to see what it comes to")


async def chosen(engine: Engine, tenant: str, agents: tuple[str, ...], *, every: bool) -> AsyncIterator[AgentName]:
    """The agents that are named, or every one of the tenant. Raises InvalidInput when neither or both are asked for."""
    if bool(agents) == every:
        raise InvalidInput("which agents?", hint="name them, or --all for every agent of the tenant")
    for agent in agents:
        yield AgentName(tenant, agent)
    after = ""
    while every and (page := await engine.log.store.list_agents(tenant, after=after, limit=AGENTS_PAGE)):
        after = page[-1].agent
        for record in page:
            # Those that are at another engine, on their way, or erased have no state here: --all means all that there are.
            if record.data_key and mark_of(record.owner) is None:
                yield AgentName(tenant, record.agent)


async def for_each(
    names: AsyncIterator[AgentName], work: Callable[[AgentName], Awaitable[T]], *, parallel: int, progress: Progress | None = None
) -> Done:
    """Work on each, so many at once. One that fails holds up no other; a server that is away ends it. A single agent's failure is raised."""
    if not 1 <= parallel <= PARALLEL_MAX:
        raise InvalidInput(f"{parallel} at once", hint=f"1 to {PARALLEL_MAX}")
    done = Done()
    problems: list[PerdureError] = []

    async def one(name: AgentName) -> None:
        try:
            done.results.append(await work(name))
        except Unavailable:
            raise
        except PerdureError as problem:
            problems.append(problem)
            done.failures += 1
            if len(done.failed) < FAILURES_KEPT_MAX:
                done.failed[name.agent] = problem.message
        if progress is not None:
            progress(len(done.results) + done.failures)

    running: set[asyncio.Task[None]] = set()
    try:
        async for name in names:
            if len(running) >= parallel:
                await _some(running)
            running.add(asyncio.create_task(one(name)))
        while running:
            await _some(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if problems and not done.results and len(problems) == 1:
        raise problems[0]
    done.code = problems[0].exit_code if problems else 0
    return done


async def _some(running: set[asyncio.Task[None]]) -> None:
    finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    running -= finished
    for task in finished:
        task.result()
