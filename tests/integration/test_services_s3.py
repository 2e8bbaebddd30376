"""The S3 service that is started here: only when it is asked for, and on its data again after a kill."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure import services
from perdure.snapshots.store import open_store
from tests.fix_services import PrivateServices


async def test_it_comes_back_with_what_it_had(private_services: Callable[..., PrivateServices], monkeypatch: pytest.MonkeyPatch) -> None:
    private = private_services("s3")
    environment = private.services.environment()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    service = private.services.s3
    assert service is not None
    assert private.services.all() == (service,)
    store = open_store(environment["PERDURE_STORE"])
    await store.put("a", b"content")
    services.stop("s3", private.root, how="kill")
    assert not services.status(private.root).s3.running  # type: ignore[union-attr]
    again = services.start("s3", private.root)
    assert (again.url, again.running) == (service.url, True)
    # moto, where there is no Go, keeps its objects in memory.
    if service.version != "moto":
        assert await store.get("a", bytes_max=10) == b"content"
