"""perdure without asyncio: the same engine behind blocking calls.

Every call runs on one event loop in a thread of its own, so the engine's code stands once. Iterators come page by page.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Self, TypeVar

from perdure import config
from perdure.client.engine import open_engine
from perdure.limits import PARTITIONS_DEFAULT

__all__ = ["Blocking", "open"]

T = TypeVar("T")


class _Portal:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="perdure-sync", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Blocking:
    """Any object of the engine with its coroutines as blocking calls and its asynchronous iterators as plain ones."""

    def __init__(self, portal: _Portal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    def __repr__(self) -> str:
        return f"Blocking({self._inner!r})"

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if name.startswith("_"):
            raise AttributeError(name)
        return self._callable(value) if callable(value) else self._wrapped(value)

    def _callable(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                return self._portal.call(result)
            if isinstance(result, AsyncIterator):
                return self._iterate(result)
            return self._wrapped(result)

        return call

    def _iterate(self, source: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> tuple[bool, Any]:
            try:
                return True, await anext(source)
            except StopAsyncIteration:
                return False, None

        while True:
            more, item = self._portal.call(following())
            if not more:
                return
            yield item

    def _wrapped(self, value: Any) -> Any:
        module = type(value).__module__
        asynchronous = any(inspect.iscoroutinefunction(member) for _, member in inspect.getmembers(type(value), inspect.isfunction))
        return Blocking(self._portal, value) if module.startswith("perdure.") and asynchronous else value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine and its thread."""
        self._portal.call(self._inner.close())
        self._portal.close()


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
    portal = _Portal()
    try:
        return Blocking(portal, portal.call(open_engine(settings, partitions=partitions, create=create)))
    except BaseException:
        portal.close()
        raise
