"""perdure without asyncio: the same engine behind blocking calls.

::

    with perdure.sync.open("sqlite:///./state") as engine:
        agent = engine.agent("support-17", tenant="acme")
        agent.append(perdure.Event("message_added", changes=(perdure.append("/messages", message),)))
        for event in agent.events(): ...

Everything of `perdure.open` is there under its own name: coroutines are calls, asynchronous iterators are iterators, asynchronous contexts are
contexts, and a function that is handed in as `handler` may be a plain one (it runs in a thread and may use the engine). `stop` may be a
`threading.Event`. Many threads may share one engine. All of it runs on one event loop in a thread of its own, so the engine's code stands once.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from itertools import zip_longest
from types import TracebackType
from typing import Any, Self

from perdure import config
from perdure.client.engine import open_engine
from perdure.client.portal import Portal
from perdure.limits import PARTITIONS_DEFAULT

__all__ = ["Blocking", "open"]

_COROUTINES = ("Coroutine[", "Awaitable[")
_ITERATORS = ("AsyncIterator[", "AsyncGenerator[")


class Blocking:
    """Any object of the engine with its coroutines as blocking calls and its asynchronous iterators as plain ones."""

    __slots__ = ("_inner", "_portal")

    def __init__(self, portal: Portal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    def __repr__(self) -> str:
        return f"Blocking({self._inner!r})"

    def __dir__(self) -> list[str]:
        return sorted({*(name for name in dir(self._inner) if not name.startswith("_")), "close"})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._inner, name)
        return self._callable(value) if inspect.isroutine(value) else _wrapped(self._portal, value)

    def _callable(self, function: Callable[..., Any]) -> Callable[..., Any]:
        kind, names = _kind(getattr(function, "__func__", function)), _positions(getattr(function, "__func__", function))
        portal = self._portal

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            portal.check()
            arguments = [_unwrapped(portal, name, value) for name, value in zip_longest(names[: len(given)], given)]
            keywords = {name: _unwrapped(portal, name, value) for name, value in named.items()}
            if kind == "iterator":
                return _iterate(portal, lambda: function(*arguments, **keywords))
            if kind == "plain":
                return _wrapped(portal, function(*arguments, **keywords))
            return _wrapped(portal, portal.call(lambda: function(*arguments, **keywords)))

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the engine with its thread. A second time does nothing."""
        if not self._portal.closed and hasattr(self._inner, "close"):
            try:
                self._portal.call(self._inner.close)
            finally:
                if self._portal.owner is self._inner:
                    self._portal.close()


class BlockingContext:
    """An asynchronous context as a plain one."""

    __slots__ = ("_inner", "_portal")

    def __init__(self, portal: Portal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    def __enter__(self) -> Any:
        return _wrapped(self._portal, self._portal.call(self._inner.__aenter__))

    def __exit__(self, *problem: Any) -> Any:
        return self._portal.call(lambda: self._inner.__aexit__(*problem))


def open(
    url: str | None = None,
    *,
    bus: str | None = None,
    cache: str | None = None,
    store: str | None = None,
    keys: str | None = None,
    settings: config.Settings | None = None,
    partitions: int = PARTITIONS_DEFAULT,
    create: bool = True,
) -> Blocking:
    """As `perdure.open`, for code without asyncio: `with perdure.sync.open("sqlite:///./state") as engine: …`."""
    settings = settings or config.load({"log": url, "bus": bus, "cache": cache, "store": store, "keys": keys})
    portal = Portal()
    try:
        portal.owner = portal.call(lambda: open_engine(settings, partitions=partitions, create=create))
    except BaseException:
        portal.close()
        raise
    return Blocking(portal, portal.owner)


@lru_cache(maxsize=4_096)
def _kind(function: Callable[..., Any]) -> str:
    """What calling it gives: a coroutine (also from a plain function that says so), an asynchronous iterator, or plainly its result."""
    says = str(getattr(function, "__annotations__", {}).get("return", ""))
    if inspect.iscoroutinefunction(function) or says.startswith(_COROUTINES):
        return "coroutine"
    return "iterator" if inspect.isasyncgenfunction(function) or says.startswith(_ITERATORS) else "plain"


@lru_cache(maxsize=4_096)
def _positions(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of its positional parameters, without self."""
    found = inspect.signature(function).parameters.values()
    return tuple(each.name for each in found if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self")


@lru_cache(maxsize=4_096)
def _blocks(kind: type[Any]) -> bool:
    """Whether instances have something to wait for."""
    if not kind.__module__.startswith("perdure."):
        return False
    return any(_kind(member) != "plain" for _, member in inspect.getmembers(kind, inspect.isfunction))


def _wrapped(portal: Portal, value: Any) -> Any:
    kind: Any = type(value)
    if kind is list and value and _blocks(value[0].__class__):
        return [Blocking(portal, item) for item in value]
    if hasattr(kind, "__aenter__") and not _blocks(kind):
        return BlockingContext(portal, value)
    return Blocking(portal, value) if _blocks(kind) else value


def _unwrapped(portal: Portal, name: str | None, value: Any) -> Any:
    """An argument as the engine takes it."""
    if isinstance(value, Blocking):
        return value._inner
    if name == "stop" and hasattr(value, "wait"):
        return portal.stop_event(value)
    if name == "handler" and inspect.isfunction(value) and not inspect.iscoroutinefunction(value):
        return _in_thread(value)
    return value


def _in_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def run(*given: Any) -> Any:
        return await asyncio.to_thread(function, *given)

    return run


def _iterate(portal: Portal, start: Callable[[], Any]) -> Iterator[Any]:
    pump = portal.call(lambda: portal.pump(start()))
    try:
        while page := portal.call(pump.page):
            for item in page:
                yield _wrapped(portal, item)
    finally:
        if not portal.closed:
            portal.call(pump.close)
