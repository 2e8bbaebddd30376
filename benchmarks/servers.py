"""The servers a benchmark runs on, a fresh database in them, and what Postgres does by itself: pgbench and COPY."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg

import perdure
from perdure import config, services
from perdure.client.engine import Engine
from perdure.errors import MissingDependency
from perdure.services.postgres import _installed as installed_postgres

__all__ = ["Baseline", "Pgbench", "Place", "copy_rate", "engine_on_postgres", "fresh_database", "pgbench", "postgres_url", "server_program"]

# The columns and indexes of one segment of the log; the sequence stands for the offset.
_TABLE = """
CREATE SEQUENCE rows_offset CACHE 32;
CREATE TABLE rows (
  agent_key bigint NOT NULL, "offset" bigint NOT NULL DEFAULT nextval('rows_offset'), time_us bigint NOT NULL, version integer NOT NULL,
  epoch integer NOT NULL, tenant_key integer NOT NULL, partition integer NOT NULL, id uuid NOT NULL, causation uuid, type text NOT NULL,
  chain bytea NOT NULL, correlation text, trace text, project text, module text, payload bytea NOT NULL);
ALTER TABLE rows ALTER COLUMN payload SET STORAGE EXTERNAL, ALTER COLUMN chain SET STORAGE PLAIN;
CREATE UNIQUE INDEX ON rows ("offset");
CREATE UNIQUE INDEX ON rows (agent_key, version);
CREATE UNIQUE INDEX ON rows (id, agent_key);
"""
# Ids that grow with time, as the log's do, so that the index on them is as cheap.
_INSERT = r"""
\set agent random(1, 2048)
\set version random(1, 2000000000)
\set tail random(1, 2000000000)
INSERT INTO rows (agent_key, time_us, version, epoch, tenant_key, partition, id, type, chain, payload)
VALUES (:agent, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, :version, 1, 1, 1,
  encode(int8send((extract(epoch FROM clock_timestamp()) * 1000000)::bigint) || int8send(:tail), 'hex')::uuid,
  'message_added', :chain, :payload);
"""


class Pgbench:
    """What one run of pgbench found. latency_s: mean of a transaction as one client sees it."""

    def __init__(self, rate: float, latency_s: float) -> None:
        self.rate = rate
        self.latency_s = latency_s


@contextmanager
def fresh_database(postgres_url: str) -> Iterator[str]:
    """URL of a new empty database, dropped afterwards."""
    name = f"benchmark_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


class Baseline:
    """A table like a segment of the log, into which Postgres's own tools insert."""

    def __init__(self, url: str, payload: bytes) -> None:
        self.url = url
        self.payload = payload
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_TABLE)
            connection.execute("CHECKPOINT")


def pgbench(baseline: Baseline, clients: int, duration_s: float) -> Pgbench:
    """Insert one row a transaction, by prepared statements."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_INSERT)
        script.flush()
        Path(script.name).chmod(0o644)
        command = [
            server_program("pgbench"),
            "-n",
            "-M",
            "prepared",
            "-c",
            str(clients),
            "-j",
            str(min(clients, 2)),
            "-T",
            str(max(1, round(duration_s))),
        ]
        command += ["-D", "payload=\\x" + baseline.payload.hex(), "-D", "chain=\\x" + "5a" * 32, "-f", script.name, baseline.url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"tps = ([\d.]+)", output)
    if rate is None:
        raise RuntimeError(f"pgbench does not tell its rate: {output}")
    return Pgbench(float(rate[1]), clients / float(rate[1]))


def copy_rate(baseline: Baseline, rows: int) -> float:
    """Rows per second by COPY in one transaction, its commit included."""
    encoded = "\\\\x" + baseline.payload.hex()
    chain = "\\\\x" + "5a" * 32
    ids = [uuid.UUID(int=(time.time_ns() << 64) + number) for number in range(rows)]
    lines = [f"{5000 + n % 2048}\t{n}\t{n}\t1\t1\t1\t{ids[n]}\tmessage_added\t{chain}\t{encoded}\n".encode() for n in range(rows)]
    columns = "agent_key, time_us, version, epoch, tenant_key, partition, id, type, chain, payload"
    with psycopg.connect(baseline.url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        with cursor.copy(f"COPY rows ({columns}) FROM STDIN") as copy:
            for first in range(0, rows, 500):
                copy.write(b"".join(lines[first : first + 500]))
        connection.commit()
        return rows / (time.perf_counter() - started)


class Place(NamedTuple):
    """An engine on a new database, and where its things are. flags: its settings, as the command takes them."""

    engine: Engine
    flags: dict[str, str]
    postgres_url: str
    folder: Path

    @property
    def url(self) -> str:
        """Of its log."""
        return self.flags["log"]


async def postgres_url(root: Path | None) -> str:
    """URL of the Postgres that a benchmark runs on; it is started where none runs."""
    postgres = (await asyncio.to_thread(services.up, root=root, only=("postgres",))).postgres
    assert postgres is not None
    return postgres.url


@asynccontextmanager
async def engine_on_postgres(root: Path | None) -> AsyncIterator[Place]:
    """An engine on a new database, with keys and a store of snapshots in a temporary folder."""
    server = await postgres_url(root)
    with tempfile.TemporaryDirectory(prefix="perdure-benchmark-") as folder, fresh_database(server) as url:
        flags = {"log": url, "keys": f"file://{folder}/root.key", "bus": "memory://", "cache": "memory://", "store": f"file://{folder}/s"}
        async with perdure.open(settings=config.load(flags)) as engine:
            yield Place(engine, flags, server, Path(folder))


def server_program(name: str) -> str:
    """A program of the newest Postgres that is installed, e.g. pgbench."""
    found = installed_postgres()
    beside = found[max(found)] / name if found else None
    if beside is not None and beside.is_file():
        return str(beside)
    on_path = shutil.which(name)
    if on_path is None:
        raise MissingDependency(f"{name} is not installed", hint="apt-get install postgresql-contrib, or brew install postgresql")
    return on_path
