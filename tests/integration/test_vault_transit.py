"""Root keys in a Vault: what it wraps, and what happens when it is away, sealed, or says no."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from perdure.errors import ConfigurationError, KeyUnavailable, PerdureError, SealBroken, Unavailable
from perdure.security.keys import FileKeyProvider, KeyProvider, key_id_of, open_provider
from perdure.security.ring import KeyRing
from perdure.security.vault_transit import VaultKeyProvider, open_vault
from tests.fix_vault import TOKEN, VaultServer
from tests.unit.fix_security import MemoryDocuments

Start = Callable[..., VaultServer]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts, so that a test need not wait for the pauses of four."""
    monkeypatch.setattr("perdure.limits.KEY_SERVICE_ATTEMPTS_MAX", 2)


async def test_it_wraps_and_unwraps_over_verified_tls(vault_server: Start) -> None:
    server = vault_server(tls=True)
    wrapped = await open_provider(server.url()).wrap(b"secret", b"context")
    assert await open_provider(server.url()).unwrap(wrapped, b"context") == b"secret"
    assert b"secret" not in wrapped
    assert key_id_of(wrapped) == "perdure:v1"
    assert wrapped != await open_provider(server.url()).wrap(b"secret", b"context")


async def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(vault_server: Start) -> None:
    server = vault_server(tls=True)
    before = server.behave()
    with pytest.raises(ConfigurationError) as caught:
        await open_provider(f"vault://127.0.0.1:{server.port}/perdure").wrap(b"secret", b"")
    assert "ca=" in caught.value.hint
    assert server.behave() == before, "nothing was sent, the token least of all"


async def test_an_old_version_goes_on_to_unwrap_until_vault_forbids_it(vault_server: Start) -> None:
    server = vault_server()
    provider = open_provider(server.url())
    assert isinstance(provider, VaultKeyProvider)
    old = await provider.wrap(b"old", b"context")
    assert await provider.add_key() == provider.key_id == "perdure"
    new = await provider.wrap(b"new", b"context")
    assert (key_id_of(old), key_id_of(new)) == ("perdure:v1", "perdure:v2")
    assert await provider.unwrap(old, b"context") == b"old"
    server.request("POST", "/v1/transit/keys/perdure/config", min_decryption_version=2)
    with pytest.raises(KeyUnavailable, match="too old"):
        await provider.unwrap(old, b"context")
    assert await provider.unwrap(new, b"context") == b"new"


async def test_another_context_another_key_and_every_changed_byte_are_refused(vault_server: Start) -> None:
    server = vault_server()
    server.make_key("other")
    provider, other = open_provider(server.url()), open_provider(server.url("other"))
    wrapped = await provider.wrap(b"secret", b"context")
    with pytest.raises(SealBroken, match="another context"):
        await provider.unwrap(wrapped, b"another context")
    with pytest.raises(KeyUnavailable, match="perdure:v1"):
        await other.unwrap(wrapped, b"context")
    disguised = wrapped[:2].replace(b"\x0a", b"\x08") + b"other:v1" + wrapped[12:]
    with pytest.raises(SealBroken):
        await other.unwrap(disguised, b"context")
    for position in range(len(wrapped)):
        broken = bytearray(wrapped)
        broken[position] ^= 0x04
        with pytest.raises((SealBroken, KeyUnavailable)):
            await provider.unwrap(bytes(broken), b"context")
    for length in range(len(wrapped)):
        with pytest.raises(PerdureError):
            await provider.unwrap(wrapped[:length], b"context")


async def test_a_server_that_is_busy_is_asked_again_a_bounded_number_of_times(vault_server: Start) -> None:
    server = vault_server()
    provider = open_provider(server.url())
    server.behave(busy=2)
    assert await provider.unwrap(await provider.wrap(b"secret", b""), b"") == b"secret"
    before = server.behave(busy=100)
    with pytest.raises(Unavailable) as caught:
        await provider.wrap(b"secret", b"")
    assert caught.value.retryable
    assert server.behave(busy=0) == before + 4


@pytest.mark.usefixtures("quick")
async def test_a_server_that_is_sealed_or_away_is_unavailable(vault_server: Start) -> None:
    server = vault_server()
    provider = open_provider(server.url())
    wrapped = await provider.wrap(b"secret", b"")
    server.behave(sealed=True)
    with pytest.raises(Unavailable, match="sealed"):
        await provider.unwrap(wrapped, b"")
    server.behave(sealed=False)
    assert await provider.unwrap(wrapped, b"") == b"secret"
    server.end()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        await provider.unwrap(wrapped, b"")


async def test_what_vault_denies_is_a_key_that_is_unavailable_and_no_token_is_told(vault_server: Start) -> None:
    server = vault_server()
    provider = open_provider(server.url())
    before = server.behave(token="another token")
    with pytest.raises(KeyUnavailable, match="permission denied") as caught:
        await provider.wrap(b"secret", b"")
    assert "transit/encrypt/perdure" in caught.value.hint
    assert TOKEN not in str(caught.value.as_dict())
    assert server.behave() == before + 1, "what is denied is not asked again"
    server.behave(token=TOKEN)
    with pytest.raises(KeyUnavailable, match="not found") as caught:
        await open_provider(server.url("missing")).wrap(b"secret", b"")
    assert "vault write -f transit/keys/missing" in caught.value.hint


async def test_a_token_in_a_file_is_read_anew(vault_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = vault_server()
    file = tmp_path / "token"
    file.write_text("expired\n")
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    provider = open_provider(server.url())
    with pytest.raises(KeyUnavailable):
        await provider.wrap(b"secret", b"")
    file.write_text(TOKEN + "\n")
    await provider.wrap(b"secret", b"")


def test_a_token_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_TOKEN", "VAULT_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError) as caught:
        open_provider("vault://127.0.0.1:8200/perdure")
    assert "VAULT_TOKEN" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        *("vault://", "vault://host:1", "vault://host:1/", "vault://host/a/b", "vault://host/a%20b", "vault://token@host/key"),
        *("vault://host/key?token=x", "vault://host/key?tls=no", "vault://host/key?tls=off", "vault://host/key?mount=../sys"),
    ],
)
def test_urls_that_name_no_key_in_vault_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    with pytest.raises(ConfigurationError) as caught:
        open_vault(urlsplit(url))
    assert caught.value.hint


@pytest.mark.usefixtures("quick")
async def test_a_ring_goes_on_for_a_while_without_vault_but_not_against_it(vault_server: Start) -> None:
    server = vault_server()
    documents, now = MemoryDocuments(), [0.0]
    ring = KeyRing(open_provider(server.url()), documents, lifetime_s=60, clock=lambda: now[0])
    key = await ring.tenant_key("acme")
    server.behave(sealed=True)
    now[0] = 100
    assert await ring.tenant_key("acme") is key, "an outage is bridged"
    now[0] = 1000
    with pytest.raises(Unavailable):
        await ring.tenant_key("acme")
    server.behave(sealed=False)
    assert await ring.tenant_key("acme") is key
    server.behave(token="revoked")
    assert ring.is_fresh("acme")
    now[0] += 61
    with pytest.raises(KeyUnavailable):
        await ring.tenant_key("acme")
    assert not ring.is_fresh("acme")


async def test_keys_move_from_a_file_to_vault(vault_server: Start, tmp_path: Path) -> None:
    server = vault_server()
    documents = MemoryDocuments()
    file: KeyProvider = FileKeyProvider(tmp_path / "root.key")
    wrapped, data_key = (await KeyRing(file, documents).tenant_key("acme")).new_data_key("agent")
    ring = KeyRing(open_provider(server.url()), documents)
    with pytest.raises(KeyUnavailable) as caught:
        await ring.tenant_key("acme")
    assert "--moved-from" in caught.value.hint
    await ring.rewrap("acme", previous=file)
    assert await ring.root_key_ids("acme") == {1: "perdure:v1"}
    assert (await ring.tenant_key("acme")).unwrap_data_key("agent", wrapped) == data_key
