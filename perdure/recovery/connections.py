"""Kept connections to nodes, for requests that may be sent again: commands are known by their ids."""

from __future__ import annotations

from typing import Final, NamedTuple

import aiohttp
from yarl import URL

from perdure.errors import InvalidInput, Unavailable

__all__ = ["ANSWER_BYTES_MAX", "Answer", "Connections", "url_of"]

CONNECTIONS_MAX: Final = 128
"""To one address at once; more requests wait for one of them."""
ANSWER_BYTES_MAX: Final = 1024 * 1024
_HEADERS: Final = {"content-type": "application/json"}


class Answer(NamedTuple):
    """What a node answered."""

    status: int
    content_type: str
    content: bytes


class Connections:
    """`post` to any number of addresses (`http://host:port`, `https://…`); `close` ends all. timeout_s: of one request, waiting included."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def post(self, address: str, path: str, content: bytes) -> Answer:
        """Send JSON and wait for the answer. path: quoted as it is sent. Raises InvalidInput; Unavailable: whether it arrived is not known."""
        url = url_of(address, path)
        try:
            try:
                return await self._ask(url, content)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Mostly a kept connection that the node had closed while nobody used it; this one request more costs little elsewhere.
                return await self._ask(url, content)
        except TimeoutError as problem:
            raise Unavailable(f"node {address} did not answer within {self._timeout.total:g} s") from problem
        except (aiohttp.ClientError, OSError) as problem:
            raise Unavailable(f"node {address} does not answer: {type(problem).__name__}") from problem

    async def _ask(self, url: URL, content: bytes) -> Answer:
        async with self._opened().post(url, data=content, headers=_HEADERS, allow_redirects=False) as answer:
            body = bytearray()
            async for part in answer.content.iter_any():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    answer.close()
                    raise aiohttp.ClientPayloadError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
            return Answer(answer.status, answer.headers.get("content-type", ""), bytes(body))

    def _opened(self) -> aiohttp.ClientSession:
        """Made with the first request: it belongs to a running loop."""
        if self._closed:
            raise Unavailable("these connections are closed")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS_MAX)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self._session

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._closed = True
        if self._session is not None:
            await self._session.close()


def url_of(address: str, path: str) -> URL:
    """Of a node's route; path: quoted as it is sent. Raises InvalidInput."""
    url = URL(address.rstrip("/") + path, encoded=True)
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(f"{address!r} is no address of a node", hint="http://HOST:PORT")
    return url
