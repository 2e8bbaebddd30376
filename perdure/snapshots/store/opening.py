"""From a URL to a store, with limits, repeats and a meter around it.

- `file:///absolute/folder`
- `s3://bucket/prefix?region=…&endpoint=https://…`; credentials from the environment. Plain http is for this machine, elsewhere only with
  `insecure_http=yes`: contents are sealed, but names, sizes and times are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from perdure.errors import ConfigurationError, InvalidInput, MissingDependency, UnsafeSettings
from perdure.snapshots.store.contract import SnapshotStore, check_name
from perdure.snapshots.store.decorators import BoundedStore, MeteredStore, RetriedStore
from perdure.snapshots.store.local import LocalStore

__all__ = ["check_create_only", "open_store"]

_HINT: Final = "write file:///absolute/folder or s3://bucket/prefix?region=…&endpoint=https://…"
_PARAMETERS: Final = {"region", "endpoint", "insecure_http"}
_PROBE: Final = "probe/create-only"
_THIS_MACHINE: Final = {"127.0.0.1", "localhost", "::1"}


def open_store(url: str) -> MeteredStore:
    """The store of this URL; nothing is reached before its first use. Raises ConfigurationError, MissingDependency."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return MeteredStore(BoundedStore(LocalStore(_folder(parts))))
    if parts.scheme == "s3":
        return MeteredStore(BoundedStore(_bucket(parts)))
    raise ConfigurationError(f"a store of the kind {parts.scheme or url!r} is not known", hint=_HINT)


async def check_create_only(store: SnapshotStore) -> None:
    """Put an object twice; it stays in the store, tiny, as `probe/create-only`. Raises UnsafeSettings when the second one replaces it.

    Some services that speak S3 ignore the condition of a conditional write, and would let a snapshot be overwritten."""
    await store.put(_PROBE, b"first")
    if await store.put(_PROBE, b"second") or await store.get(_PROBE, bytes_max=10) != b"first":
        hint = "take a service that knows conditional writes (If-None-Match), or a newer release of this one"
        raise UnsafeSettings("the store's service replaces objects that must never change", hint=hint)


def _folder(parts: SplitResult) -> Path:
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query:
        raise ConfigurationError(f"the store file:{parts.path} names no folder of this machine", hint=_HINT)
    return Path(unquote(parts.path))


def _bucket(parts: SplitResult) -> SnapshotStore:
    if "@" in parts.netloc or not parts.netloc:
        raise ConfigurationError("the URL of a store names a bucket, and no credentials", hint=_HINT)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := given.keys() - _PARAMETERS:
        raise ConfigurationError(f"the store's URL has the unknown parameter {sorted(unknown)[0]!r}", hint=_HINT)
    endpoint = given.get("endpoint", "")
    try:
        from perdure.snapshots.store.object import ObjectStore

        store = ObjectStore(
            parts.netloc,
            _prefix(parts.path),
            region=given.get("region") or "us-east-1",
            endpoint=endpoint,
            allow_http=_allows_http(endpoint, given.get("insecure_http", "")),
        )
        return RetriedStore(store)
    except ImportError as error:
        raise MissingDependency(f"{error.name} is not installed", hint="pip install 'perdure[s3]'") from error


def _prefix(path: str) -> str:
    prefix = unquote(path).strip("/")
    try:
        return check_name(prefix) if prefix else ""
    except InvalidInput as error:
        raise ConfigurationError(f"the store's prefix {prefix!r} cannot be used", hint=error.hint) from error


def _allows_http(endpoint: str, insecure: str) -> bool:
    parts = urlsplit(endpoint)
    if not endpoint or parts.scheme == "https":
        return False
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc:
        raise ConfigurationError(f"{parts.scheme}://{parts.hostname} is no endpoint of a store", hint=_HINT)
    if parts.hostname not in _THIS_MACHINE and insecure != "yes":
        raise ConfigurationError(f"the store at {parts.hostname} is reached without TLS", hint="https://…, or add &insecure_http=yes")
    return True
