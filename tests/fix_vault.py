"""A Vault for the tests of keys: see tests/vault_server.py."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN = "hvs.a-token-of-the-tests"
ANSWER_TIMEOUT_S = 60.0


@dataclass
class VaultServer:
    """One running server. ca: file of its certificate, '' without TLS."""

    port: int
    ca: str
    process: subprocess.Popen[bytes]

    def url(self, key: str = "perdure") -> str:
        """As PERDURE_KEYS has it."""
        return f"vault://127.0.0.1:{self.port}/{key}?" + (f"ca={self.ca}" if self.ca else "tls=off")

    def request(self, method: str, path: str, **body: object) -> Any:
        """What an administrator does."""
        if self.ca:
            context = ssl.create_default_context(cafile=self.ca)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body), {"x-vault-token": TOKEN})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, content
            return json.loads(content or b"{}")
        finally:
            connection.close()

    def behave(self, **how: object) -> int:
        """sealed, busy, token: see the server; the number of requests so far."""
        return int(self.request("POST", "/test-control", **how)["requests"])

    def make_key(self, name: str = "perdure") -> None:
        self.request("POST", f"/v1/transit/keys/{name}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(ANSWER_TIMEOUT_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def vault_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., VaultServer]]:
    """A factory: `vault_server()`, `vault_server(tls=True)`. The server has a key `perdure`; the token is in the environment."""
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    for name in ("VAULT_TOKEN_FILE", "VAULT_CACERT"):
        monkeypatch.delenv(name, raising=False)
    started: list[VaultServer] = []

    def start(*, tls: bool = False) -> VaultServer:
        files = certificate(tmp_path) if tls else ()
        command = [sys.executable, "-m", "tests.vault_server", TOKEN, *files]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        assert process.stdout is not None
        server = VaultServer(json.loads(process.stdout.readline())["port"], files[0] if files else "", process)
        started.append(server)
        server.make_key()
        return server

    yield start
    for server in started:
        server.end()


def certificate(folder: Path) -> tuple[str, str]:
    """Files of a new self-signed certificate for 127.0.0.1, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "vault.pem", folder / "vault.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(encoded)
    return str(chain), str(secret)
