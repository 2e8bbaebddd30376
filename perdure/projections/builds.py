"""The record of rebuilds: which build is under way, how far it is, and who may decide about it.

It is one control document in the log's store, changed only by compare-and-set of its revision. That makes three decisions final:

- a build's number is given once and only grows, so that what an older build left behind is recognised as older;
- a build is either cut over or aborted: `building` becomes one of `cutting` and `aborted`, whoever is first;
- who has not the newest revision, because another one went on in its place, is refused with `Fenced` and must stop.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

import msgspec

from perdure import limits
from perdure.engine.log.contract import LogStore
from perdure.engine.log.records import Document
from perdure.errors import Conflict, Fenced, NotFound, Unavailable

__all__ = ["Build", "BuildRecord", "Phase"]

Phase = Literal["none", "building", "cutting", "done", "aborted"]

SCOPE: Final = "cache"
NAME: Final = "build"
NUMBERS: Final = "build-number"
NUMBERS_PER_GENERATION: Final = 1_000_000
"""A log that was restored may have forgotten numbers; its generation is higher then, and so are its numbers."""


class Build(msgspec.Struct, frozen=True):
    """One build. tenant: whose agents, or None for all.

    agents, events: what there is to do; agents_done, events_done: of it, done while building; agents_cut: cut over. skipped: agents without
    events or a key, or on their way to another log. after: tenant and agent up to which the phase is done. problems: agents that could not be
    built, the first ones, one line each; failures: all of them. cleaned: nothing that an abort left lies in the cache any more. Times are unix
    microseconds.
    """

    number: int = 0
    phase: Phase = "none"
    tenant: str | None = None
    agents: int = 0
    events: int = 0
    agents_done: int = 0
    events_done: int = 0
    agents_cut: int = 0
    skipped: int = 0
    failures: int = 0
    problems: tuple[str, ...] = ()
    after: tuple[str, str] = ("", "")
    events_per_s: float = 0.0
    started_us: int = 0
    updated_us: int = 0
    cleaned: bool = True

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.phase in ("building", "cutting")

    @property
    def eta_s(self) -> float | None:
        """How long it will take at its rate; None where nothing is known yet, or it is over."""
        if not self.open or not self.events_per_s:
            return None
        return max(0, self.events - self.events_done) / self.events_per_s


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Build).decode


class BuildRecord:
    """The record, as one process knows it: `build` is what it has read or written last. scope: of the documents; that of the cache, or of a
    projection."""

    def __init__(self, store: LogStore, scope: str = SCOPE) -> None:
        self._store = store
        self._scope = scope
        self._revision = 0
        self.build = Build()

    async def read(self) -> Build:
        """What stands now."""
        self._take(await self._store.get_document(self._scope, NAME))
        return self.build

    async def begin(self, tenant: str | None) -> Build:
        """A new build with the next number. Raises Conflict while one is open, Fenced when another process was first."""
        number = await self.number()
        if self.build.open:
            raise Conflict(f"build {self.build.number} is under way")
        now_us = time.time_ns() // 1_000
        new = Build(number, "building", tenant, started_us=now_us, updated_us=now_us, cleaned=False)
        return await self._put(new)

    async def number(self) -> int:
        """The next number by itself, for one agent that is put anew at once; an open build goes on, and counts as the older one."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            counter = await self._store.get_document(self._scope, NUMBERS)
            standing = int(counter.value) if counter else 0
            number = max(standing, (await self.read()).number, self._store.generation * NUMBERS_PER_GENERATION) + 1
            if await self._store.put_document(self._scope, NUMBERS, str(number).encode(), expected=counter.revision if counter else 0):
                return number
        raise Unavailable("others took every number first", hint="try again")

    async def advance(self, **changes: Any) -> Build:
        """Go on from what was read. Raises Fenced when it is not what stands any more."""
        return await self._put(msgspec.structs.replace(self.build, **changes, updated_us=time.time_ns() // 1_000))

    async def abort(self) -> Build:
        """End the build before it is cut over. Raises NotFound without one, Conflict when it is being cut over."""
        for _ in range(limits.CONTROL_WRITE_ATTEMPTS_MAX):
            build = await self.read()
            if not build.open:
                raise NotFound("no rebuild is under way")
            if build.phase == "cutting":
                raise Conflict(
                    f"build {build.number} is being cut over", hint="it can only go on; `perdure rebuild` ends it where it stands still"
                )
            try:
                return await self.advance(phase="aborted")
            except Fenced:
                continue
        raise Unavailable("others changed the build every time", hint="try again")

    async def was_aborted(self) -> bool:
        """Look again, after Fenced: whether this build is over because it was aborted, and not because another process went on with it."""
        number = self.build.number
        return (await self.read()).phase == "aborted" and self.build.number == number

    async def _put(self, build: Build) -> Build:
        written = await self._store.put_document(self._scope, NAME, _encode(build), expected=self._revision)
        if written is None:
            raise Fenced(f"build {self.build.number} is not this process's any more: it was aborted, or another one went on with it")
        self._take(written)
        return self.build

    def _take(self, document: Document | None) -> None:
        self._revision, self.build = (document.revision, _decode(document.value)) if document else (0, Build())
