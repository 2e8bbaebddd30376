"""What the demo does, scene by scene, with the same engine that everybody has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

import perdure
from perdure import config
from perdure.cli.demo_crash import crash, lost_after
from perdure.cli.output import count, cut, plain, room
from perdure.cli.render import change_line, event_line
from perdure.client.engine import Engine, Opening
from perdure.engine.importing import BrokenRecord, Conversation, read_conversations
from perdure.engine.importing.samples import generate

__all__ = ["Stage", "play"]

LIVE_EVENTS_SHOWN: Final = 8
CHANGES_SHOWN: Final = 6
FOLLOW_TIMEOUT_S: Final = 60.0
LINE_CHARACTERS: Final = 118

Say = Callable[[str], None]


class Stage(NamedTuple):
    """Where and on what the demo plays. files: empty means made up from the seed."""

    folder: Path
    tenant: str
    files: tuple[str, ...]
    agents: int
    seed: int

    @property
    def log_url(self) -> str:
        """The embedded log."""
        return f"sqlite:///{self.folder / 'state'}"

    @property
    def keys_url(self) -> str:
        """The root key beside it."""
        return f"file://{self.folder / 'root.key'}"

    def open(self) -> Opening:
        """An engine on the folder; everything else is in the process."""
        flags = {"log": self.log_url, "keys": self.keys_url, "bus": "memory://", "cache": "memory://"}
        return perdure.open(settings=config.load(flags))


async def play(stage: Stage, say: Say) -> dict[str, Any]:
    """All scenes; the facts of the summary."""
    began_s = time.monotonic()
    conversations = list(islice(_conversations(stage), stage.agents))
    star = conversations[0]
    async with stage.open() as engine:
        say(f"{len(conversations)} agents write at once; this is {star.agent}, live:\n")
        written = await _write(engine, stage, conversations, say)
        say("\nThe same agent half-way, and now:\n")
        past = await _look_back(engine, stage, star, say)
    # After the engine has closed its log: what it keeps, without a write-ahead file that is still to be folded in.
    written["log_bytes"] = sum(path.stat().st_size for path in stage.folder.rglob("*") if path.is_file())
    say("\nAnother process writes, and is killed with kill -9 in the middle:\n")
    killed = await crash(stage.log_url, stage.keys_url, stage.tenant)
    async with stage.open() as engine:
        lost, found = await lost_after(engine, stage.tenant, killed.acknowledged)
        say(f"  process {killed.pid} ended with {killed.status}; it had been told of {count(len(killed.acknowledged))} events")
        say(f"  reopened: its agents have {count(found)} events, {len(lost)} of the acknowledged are lost")
        report = await engine.verify()
    return {
        "ok": bool(report.ok) and not lost,
        "written": written,
        "past": past,
        "crash": {"status": killed.status, "acknowledged": len(killed.acknowledged), "found": found, "lost": len(lost)},
        "verified": bool(report.ok),
        "verify": plain(report),
        "took_s": round(time.monotonic() - began_s, 3),
    }


def _conversations(stage: Stage) -> Iterator[Conversation]:
    if not stage.files:
        yield from generate(seed=stage.seed, agents=stage.agents)
        return
    for name in stage.files:
        for found in read_conversations(name):
            if isinstance(found, BrokenRecord):
                raise found.as_error()
            yield found


async def _write(engine: Engine, stage: Stage, conversations: list[Conversation], say: Say) -> dict[str, Any]:
    """Every agent appends its events one by one, all agents at once; one of them is followed meanwhile."""
    star = conversations[0]
    begun = asyncio.Event()
    following = asyncio.create_task(_follow(engine, stage.tenant, star, begun, say))
    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for conversation in conversations:
            group.create_task(_live(engine, stage.tenant, conversation, begun if conversation is star else None))
    took_s = time.perf_counter() - began_s
    await following
    events = sum(len(conversation.events) for conversation in conversations)
    raw = sum(
        len(msgspec.json.encode(plain(change.value)))
        for conversation in conversations
        for event in conversation.events
        for change in event.changes
    )
    return {
        "agents": len(conversations),
        "events": events,
        "seconds": round(took_s, 3),
        "events_per_s": round(events / took_s, 1),
        "raw_json_bytes": raw,
    }


async def _live(engine: Engine, tenant: str, conversation: Conversation, begun: asyncio.Event | None) -> None:
    agent = engine.agent(conversation.agent, tenant=tenant)
    for event in conversation.events:
        await agent.append(event)
        if begun is not None:
            begun.set()


async def _follow(engine: Engine, tenant: str, conversation: Conversation, begun: asyncio.Event, say: Say) -> None:
    """Show the agent's events as the log hands them out."""
    shown = min(LIVE_EVENTS_SHOWN, len(conversation.events))
    async with asyncio.timeout(FOLLOW_TIMEOUT_S):
        await begun.wait()
        async for event in engine.agent(conversation.agent, tenant=tenant).events(follow=True):
            say(_cut(f"  {event_line(event)}"))
            if event.version >= shown:
                break
    if more := len(conversation.events) - shown:
        say(f"  … and {more} more")


async def _look_back(engine: Engine, stage: Stage, star: Conversation, say: Say) -> dict[str, Any]:
    """The state at an earlier version next to now, and the changes between."""
    agent = engine.agent(star.agent, tenant=stage.tenant)
    now = await agent.state(consistency="strong")
    before = await agent.state(at_version=max(1, now.version // 2))
    changes = await agent.diff(before.version, now.version)
    for state, when in ((before, "then"), (now, "now ")):
        held = ", ".join(f"{name}: {len(value)}" if isinstance(value, list | dict) else f"{name}" for name, value in state.document.items())
        say(_cut(f"  {when}  version {state.version:>4}  {held}"))
    say("  between:")
    for change in changes[:CHANGES_SHOWN]:
        say(_cut(f"    {change_line(change)}"))
    if (more := len(changes) - CHANGES_SHOWN) > 0:
        say(f"    … and {more} more changes")
    return {"agent": star.agent, "then": before.version, "now": now.version, "changes": len(changes)}


def _cut(line: str) -> str:
    return cut(line, room(0, LINE_CHARACTERS))
