"""Every server by TLS, with passwords, by nothing but its URL: certificates are checked, and a wrong one is a typed error."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import pwd
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from urllib.parse import quote

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis
from redis.exceptions import RedisError

import perdure
from perdure.engine.bus import open_bus
from perdure.errors import ConfigurationError, Unavailable
from perdure.projections.redis import RedisCache
from perdure.services import docker, kafka, state
from tests.fix_services import PrivateServices

PASSWORD = "p@ss/word:1"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate of 127.0.0.1; whoever trusts `file` trusts the servers that show it."""

    file: Path
    key: Path
    both: Path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return new_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """One that no server shows."""
    return new_certificate(tmp_path_factory.mktemp("stranger"))


def new_certificate(folder: Path) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    shown = built.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = Certificate(folder / "certificate.pem", folder / "key.pem", folder / "both.pem")
    for file, content in ((made.file, shown), (made.key, secret), (made.both, secret + shown)):
        file.write_bytes(content)
    return made


def on_this_machine(private_services: Callable[..., PrivateServices], name: str = "postgres") -> PrivateServices:
    """A server whose files can be reached, also where Docker works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "available", lambda: False)
        return private_services(name)


@pytest.fixture(scope="module")
def postgres(private_services: Callable[..., PrivateServices], certificate: Certificate) -> str:
    """The URL, without options, of a Postgres that shows the certificate."""
    service = on_this_machine(private_services).services.postgres
    assert service is not None
    with psycopg.connect(service.url, autocommit=True) as connection:
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
        assert row is not None
        folder = Path(row[0])
        for file, name in ((certificate.file, "server.crt"), (certificate.key, "server.key")):
            (folder / name).write_bytes(file.read_bytes())
            (folder / name).chmod(0o600)
            if os.getuid() == 0:
                owner = pwd.getpwuid(folder.stat().st_uid)
                os.chown(folder / name, owner.pw_uid, owner.pw_gid)
        connection.execute("ALTER SYSTEM SET ssl = on")
        connection.execute("SELECT pg_reload_conf()")
    return service.url


@pytest.fixture(scope="module")
def kafka_address(private_services: Callable[..., PrivateServices], certificate: Certificate) -> str:
    """HOST:PORT of a listener with TLS and passwords."""
    (port,) = state.free_ports(1)
    plain = kafka.properties
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_perdure="{PASSWORD}";'

    def secured(record: kafka.Record, node: int) -> dict[str, str]:
        settings = plain(record, node)
        for name in ("listeners", "advertised.listeners"):
            settings[name] += f",SASL_SSL://127.0.0.1:{port}"
        settings["listener.security.protocol.map"] += ",SASL_SSL:SASL_SSL"
        return settings | {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificate.both),
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": login,
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka, "properties", secured)
        on_this_machine(private_services, "kafka")
    return f"127.0.0.1:{port}"


@pytest.fixture
async def redis_address(certificate: Certificate, tmp_path: Path) -> AsyncIterator[str]:
    """HOST:PORT of a Redis with TLS and a password alone."""
    binary = which("redis-server") or which("valkey-server")
    assert binary, "redis-server is not installed"
    (port,) = state.free_ports(1)
    options = [
        "--port",
        "0",
        "--tls-port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
        "--requirepass",
        PASSWORD,
    ]
    options += ["--tls-cert-file", str(certificate.file), "--tls-key-file", str(certificate.key), "--tls-auth-clients", "no"]
    options += ["--tls-ca-cert-file", str(certificate.file)]
    process = await asyncio.create_subprocess_exec(binary, *options, stdout=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(START_TIMEOUT_S):
        while not await answers(redis_at(f"127.0.0.1:{port}", certificate)):
            await asyncio.sleep(0.02)
    yield f"127.0.0.1:{port}"
    process.kill()
    await process.wait()


async def answers(url: str) -> bool:
    async with Redis.from_url(url) as redis:
        try:
            return bool(await redis.ping())
        except (RedisError, OSError):
            return False


def postgres_at(url: str, trusted: Certificate) -> str:
    return f"{url}?sslmode=verify-full&sslrootcert={quote(str(trusted.file))}"


def kafka_at(address: str, trusted: Certificate, password: str = PASSWORD) -> str:
    security = f"security_protocol=SASL_SSL&sasl_mechanism=PLAIN&ssl_cafile={quote(str(trusted.file))}"
    return f"kafka://perdure:{quote(password, safe='')}@{address}?topic=secure&replicas=1&{security}"


def redis_at(address: str, trusted: Certificate, password: str = PASSWORD) -> str:
    return f"rediss://:{quote(password, safe='')}@{address}/0?ssl_ca_certs={quote(str(trusted.file))}"


async def test_an_engine_works_over_secured_servers(
    postgres: str, kafka_address: str, redis_address: str, certificate: Certificate, tmp_path: Path
) -> None:
    async with perdure.open(
        postgres_at(postgres, certificate),
        bus=kafka_at(kafka_address, certificate),
        cache=redis_at(redis_address, certificate),
        keys=f"file://{tmp_path}/root.key",
        partitions=2,
    ) as engine:
        await engine.agent("a", tenant="t").append([perdure.Event("noted", changes=(perdure.append("/notes", 1),))])
        async with asyncio.timeout(60):
            await engine.run(until_drained=True)
        report = await engine.verify()
        assert (report.ok, report.cache.same) == (True, 1)
    with psycopg.connect(postgres_at(postgres, certificate)) as connection:
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)


async def test_a_postgres_with_another_certificate_is_refused(postgres: str, stranger: Certificate) -> None:
    with pytest.raises(Unavailable, match="certificate verify failed"):
        await perdure.open(postgres_at(postgres, stranger))


async def test_a_redis_with_another_certificate_or_password_is_refused(
    redis_address: str, certificate: Certificate, stranger: Certificate
) -> None:
    for url, words in ((redis_at(redis_address, stranger), "certificate"), (redis_at(redis_address, certificate, "x"), "password")):
        cache = RedisCache(url)
        with pytest.raises((Unavailable, ConfigurationError), match=words):
            await cache.tokens([("t", "a")])
        await cache.close()


async def test_a_kafka_with_another_certificate_or_password_is_refused(
    kafka_address: str, certificate: Certificate, stranger: Certificate
) -> None:
    for url in (kafka_at(kafka_address, stranger), kafka_at(kafka_address, certificate, "x")):
        bus = await open_bus(url)
        with pytest.raises((Unavailable, ConfigurationError)) as caught:
            await bus.ensure(2)
        assert PASSWORD not in str(caught.value)
        await bus.close()
