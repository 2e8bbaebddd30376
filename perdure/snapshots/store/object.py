"""A store in a bucket of S3 or of a service that speaks its API and knows conditional writes (`If-None-Match: *`).

Credentials come from where AWS's tools look for them (environment, web identity, container, instance), never from the URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from perdure import limits
from perdure.errors import ConfigurationError, DeadlineExceeded, Denied, ObjectNotFound, PerdureError, Unavailable
from perdure.snapshots.store.contract import ObjectFacts, check_folder, check_name, check_size, is_name

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

__all__ = ["ObjectStore"]

_SLOWEST_BYTES_PER_S: Final = 1024 * 1024
"""A request may take its time by its size."""


class ObjectStore:
    """bucket: it must be there. prefix: a folder in it, '' for all of it. Requests are made once: see `retried.RetriedStore`.

    endpoint: of a service other than AWS. allow_http: without TLS, for a service on this machine. Raises ConfigurationError.
    """

    def __init__(self, bucket: str, prefix: str = "", *, region: str = "us-east-1", endpoint: str = "", allow_http: bool = False) -> None:
        config: S3Config = {"region": region, "conditional_put": "etag"}
        if endpoint:
            config["endpoint"] = endpoint
        client: ClientConfig = {
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=limits.STORE_CONNECT_TIMEOUT_S),
            "timeout": timedelta(seconds=_time_for(limits.STORE_OBJECT_BYTES_MAX)),
        }
        try:
            self._store = S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config={"max_retries": 0})
        except (BaseError, ValueError) as error:
            raise ConfigurationError(f"the bucket {bucket} cannot be used: {_line(error)}") from error
        self._bucket = bucket

    async def put(self, name: str, content: bytes) -> bool:
        """See SnapshotStore."""
        check_size(check_name(name), len(content), limits.STORE_OBJECT_BYTES_MAX)
        try:
            with self._explained("put", name):
                async with asyncio.timeout(_time_for(len(content))):
                    await obstore.put_async(self._store, name, content, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    async def get(self, name: str, *, bytes_max: int) -> bytes:
        """See SnapshotStore."""
        with self._explained("get", check_name(name)):
            async with asyncio.timeout(_time_for(bytes_max)):
                found = await obstore.get_async(self._store, name)
                # The head of the answer tells the size, its body is not read yet.
                check_size(name, found.meta["size"], bytes_max)
                return bytes(await found.bytes_async())

    async def facts(self, name: str) -> ObjectFacts | None:
        """See SnapshotStore."""
        try:
            with self._explained("look up", check_name(name)):
                async with asyncio.timeout(limits.STORE_REQUEST_TIMEOUT_S):
                    found = await obstore.head_async(self._store, name)
        except ObjectNotFound:
            return None
        return _facts(name, found["size"], found["last_modified"])

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectFacts]:
        """See SnapshotStore. S3 lists in order; a service that does not is found out."""
        check_folder(prefix)
        with self._explained("list", prefix or "everything"):
            pages = obstore.list(self._store, prefix or None, offset=after or None, chunk_size=limits.STORE_LIST_PAGE_OBJECTS)
        newest = ""
        while True:
            with self._explained("list", prefix or "everything"):
                try:
                    async with asyncio.timeout(limits.STORE_REQUEST_TIMEOUT_S):
                        page = await anext(pages)
                except StopAsyncIteration:
                    return
            for found in page:
                name = found["path"]
                if name <= newest:
                    raise ConfigurationError(f"the service of the bucket {self._bucket} does not list in order: {name} after {newest}")
                newest = name
                # An offset that ends in a slash loses it on its way.
                if name > after and is_name(name):
                    yield _facts(name, found["size"], found["last_modified"])

    async def delete(self, name: str) -> None:
        """See SnapshotStore."""
        try:
            with self._explained("delete", check_name(name)):
                async with asyncio.timeout(limits.STORE_REQUEST_TIMEOUT_S):
                    await obstore.delete_async(self._store, name)
        except ObjectNotFound:
            return

    async def close(self) -> None:
        """See SnapshotStore. Connections end with the object."""

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        """Whatever the service or the way to it says becomes a typed error, except that a name was there already."""
        try:
            yield
        except (PerdureError, AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            raise self._typed(error, action, name) from error

    def _typed(self, error: Exception, action: str, name: str) -> PerdureError:
        if "NoSuchBucket" in str(error) or (action == "put" and isinstance(error, FileNotFoundError)):
            return ConfigurationError(f"there is no bucket {self._bucket}", hint="make it, or name another one")
        if isinstance(error, FileNotFoundError):
            return ObjectNotFound(f"there is no object {name}", object=name)
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            hint = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do in the bucket"
            return Denied(f"the bucket {self._bucket} does not let us {action} {name}", hint=hint, object=name)
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"the bucket {self._bucket} did not {action} {name} in time", object=name)
        return Unavailable(f"the bucket {self._bucket} cannot {action} {name}: {_line(error)}", object=name)


def _facts(name: str, size: int, modified: datetime) -> ObjectFacts:
    return ObjectFacts(name, size, int(modified.timestamp() * 1_000_000))


def _time_for(size_bytes: int) -> float:
    return limits.STORE_REQUEST_TIMEOUT_S + size_bytes / _SLOWEST_BYTES_PER_S


def _line(error: BaseException) -> str:
    return " ".join(str(error).partition("Debug source:")[0].split())[:300]
