"""perdure demo | demo recovery | demo migration"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cyclopts import App

from perdure.cli.demo_scenes import Stage, play
from perdure.cli.options import DEFAULTS, Options
from perdure.cli.output import count, emit, size

__all__ = ["app"]

_INTEGRITY = 5

app = App(
    name="demo",
    help="Many agents, a real crash and time travel. `demo recovery`: a node is killed, another takes over; `demo migration`: an agent moves.",
)


@app.default
async def demo(*files: str, agents: int = 120, seed: int = 1, folder: Path | None = None, options: Options = DEFAULTS) -> int:
    """Many agents write at once; one is shown live, and as it was before; a process is killed in the middle; nothing is lost.

    Parameters
    ----------
    files
        Conversations to play, as `perdure import` reads them [default: made up from the seed].
    agents
        How many agents to make up, or at most to take from the files.
    seed
        The same seed gives the same conversations.
    folder
        Keep log and key there [default: a temporary folder, removed at the end].
    """
    with _place(folder) as place:
        stage = Stage(place, options.tenant or "demo", files, agents, seed)
        facts = await play(stage, say=_sayer(options))
        kept = f"kept in {place}" if folder else "the temporary folder is removed"
    return _end(facts, f"{_summary(facts)}\n{kept}", options)


@app.command
async def recovery(*, agents: int = 40, folder: Path | None = None, options: Options = DEFAULTS) -> int:
    """Two nodes serve busy agents; one node is killed, the other takes over its agents, and nothing is lost.

    Parameters
    ----------
    agents
        How many agents.
    folder
        Keep log and key there [default: a temporary folder, removed at the end].
    """
    from perdure.cli.demo_recovery import play as play_recovery

    with _place(folder) as place:
        facts = await play_recovery(place, agents, _sayer(options))
    return _end(facts, _recovered(facts), options)


@app.command
async def migration(*, moves: int = 4, folder: Path | None = None, options: Options = DEFAULTS) -> int:
    """Two nodes and a busy agent that moves between them; the longest gap is measured.

    Parameters
    ----------
    moves
        How often it moves.
    folder
        Keep log and key there [default: a temporary folder, removed at the end].
    """
    from perdure.cli.demo_migration import play as play_migration

    with _place(folder) as place:
        facts = await play_migration(place, moves, _sayer(options))
    return _end(facts, _moved(facts), options)


@contextlib.contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as name:
        yield Path(name)


def _sayer(options: Options) -> Callable[[str], None]:
    """What tells a line while a scene is played: nothing with --json."""

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    return say


def _end(facts: dict[str, Any], text: str, options: Options) -> int:
    emit(facts, as_json=options.json, text=f"\n{text}")
    return 0 if facts["ok"] else _INTEGRITY


def _summary(facts: dict[str, Any]) -> str:
    written, crash = facts["written"], facts["crash"]
    raw, stored = written["raw_json_bytes"], written["log_bytes"]
    return "\n".join(
        [
            "Summary",
            f"  written    {count(written['events'])} events of {count(written['agents'])} agents, one append each, "
            f"{count(written['events_per_s'])} events/s, every one on disk before it was acknowledged",
            f"  bytes      {size(raw)} of raw JSON, {size(stored)} in the log, sealed and indexed ({stored / max(raw, 1):.2f} of the raw)",
            f"  crash      {count(crash['acknowledged'])} events acknowledged before kill -9, {crash['lost']} lost",
            _verified(facts),
            f"  took       {facts['took_s']:.1f} s",
        ]
    )


def _recovered(facts: dict[str, Any]) -> str:
    rows = [f"  {entry['time'][11:23]}  {entry['what']:<22}{entry.get('to') or entry.get('agents') or ''}" for entry in facts["journal"]]
    return "\n".join(
        [
            "What the journal tells",
            *rows,
            "Summary",
            f"  killed     the owner of {facts['killed_agents']} of {facts['agents']} agents; they had new owners after {facts['taken_s']:.1f} s",
            f"  silence    {facts['longest_silence_s']:.1f} s was the longest that any agent did not answer",
            _commands(facts),
            _verified(facts),
        ]
    )


def _moved(facts: dict[str, Any]) -> str:
    gaps = sorted(move["gap_ms"] for move in facts["moves"])
    return "\n".join(
        [
            "Summary",
            f"  moved      {len(gaps)} times, {sum(move['phase'] == 'committed' for move in facts['moves'])} completed",
            f"  silence    {gaps[len(gaps) // 2]:.1f} ms in the middle, {gaps[-1]:.1f} ms at most, from outside",
            _commands(facts),
            _verified(facts),
        ]
    )


def _commands(facts: dict[str, Any]) -> str:
    return f"  commands   {count(facts['acknowledged'])} acknowledged, {facts['lost']} lost, {facts['doubled']} took effect twice"


def _verified(facts: dict[str, Any]) -> str:
    return f"  verify     {'everything holds' if facts['verified'] else 'SOMETHING DOES NOT HOLD'}"
