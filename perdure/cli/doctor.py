"""perdure doctor"""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import amount, emit
from perdure.config import masked
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from perdure.client.engine import Engine

__all__ = ["Finding", "doctor"]

_UNAVAILABLE: Final = 6
_NEEDED: Final = {
    "postgresql": ("psycopg", "pip install 'perdure[postgres]'"),
    "kafka": ("aiokafka", "pip install 'perdure[kafka]'"),
    "redis": ("redis", "pip install 'perdure[redis]'"),
    "s3": ("obstore", "pip install 'perdure[s3]'"),
    "vault": ("hvac", "pip install 'perdure[vault]'"),
}
OPEN_TIMEOUT_S: Final = 20.0
TENANTS_TRIED_MAX: Final = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    says: str
    hint: str = ""


async def doctor(
    *,
    backup: Annotated[str | None, Parameter(help="Where backups are kept: how fresh they are.", env_var="PERDURE_BACKUP")] = None,
    options: Options = DEFAULTS,
) -> int:
    """Check this installation and the servers that are configured; exit code 6 when something is missing."""
    findings = [_python(), *_libraries(options)]
    if all(finding.ok for finding in findings):
        findings += await _opens(options, backup)
        settings = options.settings()
        for what, url, scheme, ask in (
            ("store", settings.store.value, "s3:", _ask_store),
            ("keys", settings.keys.value, "vault:", _ask_keys),
        ):
            if url and url.startswith(scheme):
                findings.append(await _asked(what, asyncio.wait_for(ask(url), OPEN_TIMEOUT_S), str))
    good = all(finding.ok for finding in findings)
    told = _merged(findings)
    lines = [f"{'ok  ' if f.ok else 'FAIL'}  {f.what}: {f.says}" + (f"\n      hint: {f.hint}" if f.hint else "") for f in told]
    emit({"ok": good, "findings": [asdict(finding) for finding in findings]}, as_json=options.json, text="\n".join(lines))
    return 0 if good else _UNAVAILABLE


def _merged(findings: list[Finding]) -> list[Finding]:
    """For people: one line a place, what a server answered, or why it did not, behind its URL."""
    found: dict[str, Finding] = {}
    for each in findings:
        name = "log" if each.what == "engine" else each.what
        before = found.get(name)
        found[name] = (
            each if before is None else Finding(name, before.ok and each.ok, f"{before.says}  {each.says}", before.hint or each.hint)
        )
    return list(found.values())


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("python", good, platform.python_version(), "" if good else "Python 3.11 or newer is needed")


def _libraries(options: Options) -> Iterator[Finding]:
    settings = options.settings()
    for name in ("log", "bus", "cache", "store", "keys"):
        if getattr(settings, name).value is None:
            yield Finding(name, True, "none is set")
            continue
        url = str(getattr(settings, name).value)
        module, hint = _NEEDED.get(urlsplit(url).scheme, ("", ""))
        there = not module or importlib.util.find_spec(module) is not None
        yield Finding(name, there, masked(url) if there else f"{masked(url)} needs {module}", "" if there else hint)


async def _ask_store(url: str) -> str:
    """A bucket is reached, and its service refuses to replace what is there."""
    from perdure.snapshots.store import check_create_only, open_store

    store = open_store(url)
    await check_create_only(store)
    await store.close()
    return "answers, and replaces nothing"


async def _ask_keys(url: str) -> str:
    """A key service wraps, and unwraps what it has wrapped."""
    from perdure.security.keys import open_provider

    provider = open_provider(url)
    await provider.unwrap(await provider.wrap(b"doctor", b"doctor"), b"doctor")
    return "wraps and unwraps"


async def _opens(options: Options, backup: str | None) -> list[Finding]:
    """Opening reaches the log and refuses settings that are not durable; bus and cache are asked one by one."""
    findings: list[Finding] = []
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S), session(options) as engine:
            findings.append(await _asked("engine", engine.tenants(), lambda tenants: f"opens; {amount(len(tenants), 'tenant')}"))
            findings += await _keys(engine)
            if not str(engine.settings.bus.value).startswith("memory:"):
                findings.append(await _asked("bus", engine.bus.mark(0), lambda _: "answers, and has its topic"))
                findings += await _ahead(engine)
            if not str(engine.settings.cache.value).startswith("memory:"):
                findings.append(await _asked("cache", engine.cache.tokens([("doctor", "doctor")]), lambda _: "answers"))
            if backup is not None:
                findings.append(await _backups(engine, backup))
    except PerdureError as error:
        findings.append(Finding("engine", False, error.message, error.hint))
    except TimeoutError:
        findings.append(Finding("engine", False, f"no answer within {OPEN_TIMEOUT_S:.0f} s", "is a server of the URLs above down?"))
    return findings


async def _keys(engine: Engine) -> list[Finding]:
    """Whether the keys of the first tenants can be had. What was destroyed on purpose is not missing."""
    for tenant in (await engine.tenants())[:TENANTS_TRIED_MAX]:
        (facts,) = await engine.keys.list(tenant)
        if facts.state not in ("ok", "destroyed"):
            return [Finding("keys", False, f"tenant {tenant!r}: {facts.reason}", "docs/keys.md: without its root key nothing can be read")]
    return []


async def _ahead(engine: Engine) -> list[Finding]:
    """Whether the topic has what the log has not: a log that lost its end."""
    from perdure.recovery.promotion import ahead_of_log

    try:
        events = sum((await ahead_of_log(engine.log.store, engine.bus)).values())
    except PerdureError:
        return []  # told of the bus itself
    if not events:
        return []
    says = f"it has {events} events or more that the log does not have: an older copy of the database?"
    return [Finding("topic", False, says, "perdure recover promote --dry-run")]


async def _backups(engine: Engine, url: str) -> Finding:
    """How much would be lost if the log were lost now."""
    try:
        fresh = await engine.backups.freshness(url)
    except PerdureError as error:
        return Finding("backup", False, error.message, error.hint)
    if fresh.ahead_events:
        return Finding(
            "backup", False, f"it has {fresh.ahead_events} events that the log does not have", "perdure recover promote --dry-run"
        )
    newest = "there is none" if fresh.lag_s is None else f"the newest is {fresh.lag_s:.0f} s old, {'un' if fresh.unproven else ''}proven"
    lost = f"{fresh.lag_events} events of the last {fresh.rpo_s:.0f} s are in none" if fresh.lag_events else "every event is in it"
    says = f"{newest}; {lost}"
    return Finding("backup", not fresh.alarm, says, "perdure backup create --every 30" if fresh.alarm else "")


async def _asked(what: str, asking: Awaitable[Any], says: Callable[[Any], str]) -> Finding:
    try:
        return Finding(what, True, says(await asking))
    except PerdureError as error:
        return Finding(what, False, error.message, error.hint)
    except TimeoutError:
        return Finding(what, False, f"no answer within {OPEN_TIMEOUT_S:.0f} s", "is it up?")
