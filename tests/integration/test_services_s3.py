"""The S3 service that is started here: only when it is asked for, and on its data again after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from perdure import services
from perdure.errors import Unavailable
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


def test_one_that_is_given_by_its_url_is_used_as_it_is(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = s3_url.replace(urlsplit(s3_url).path, "")
    monkeypatch.setenv("PERDURE_SERVICES_S3_URL", given)
    found = services.up(root=tmp_path, only=["s3"])
    assert found.s3 is not None
    assert (found.s3.url, found.s3.origin, found.s3.pids) == (given, "url", ())
    assert found.environment() == {"PERDURE_STORE": given}, "whose credentials they are is not ours to say"
    monkeypatch.setenv("PERDURE_SERVICES_S3_URL", given.replace("://perdure", "://no-such-bucket"))
    with pytest.raises(Unavailable, match="S3"):
        services.up(root=tmp_path, only=["s3"])
