"""The servers that developers, tests and benchmarks use: they start once, stop, come back, and nothing else is touched."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis import Redis

from perdure import services
from perdure.errors import ConfigurationError, InvalidInput, MissingDependency, NotFound, Unavailable
from perdure.services import __main__ as command
from perdure.services import process, state
from perdure.services.model import Process
from tests.fix_services import PrivateServices, ports_of_process

Factory = Callable[..., PrivateServices]


@pytest.fixture(scope="module")
def private(private_services: Factory) -> PrivateServices:
    return private_services()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of the services' business."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as other:
        yield other
        other.kill()


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="perdure-test-", dir="/var/tmp") as folder:
        yield Path(folder)
        services.down(Path(folder), wipe=True)


def test_all_three_answer_and_tell_the_settings_of_an_engine(private: PrivateServices) -> None:
    found = services.status(private.root)
    assert [(service.name, service.running, service.origin) for service in found.all()] == [
        ("postgres", True, found.postgres.origin if found.postgres else ""),
        ("redis", True, found.redis.origin if found.redis else ""),
        ("kafka", True, found.kafka.origin if found.kafka else ""),
    ]
    settings = found.environment()
    with psycopg.connect(settings["PERDURE_LOG"]) as connection:
        rows = {name: connection.execute(f"SHOW {name}").fetchone() for name in ("data_checksums", "fsync", "synchronous_commit")}
        assert rows == {"data_checksums": ("on",), "fsync": ("on",), "synchronous_commit": ("on",)}
        assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
    with Redis.from_url(settings["PERDURE_CACHE"]) as client:
        assert client.ping()
    assert settings["PERDURE_BUS"].startswith("kafka://127.0.0.1:")


def test_up_again_changes_nothing(private: PrivateServices) -> None:
    before = services.status(private.root)
    assert services.up(root=private.root) == before


async def test_up_works_inside_a_running_event_loop(private: PrivateServices) -> None:
    assert services.up(root=private.root).kafka == private.services.kafka


def test_two_that_call_up_at_once_start_one_server(root: Path) -> None:
    found: list[services.Services] = []
    threads = [threading.Thread(target=lambda: found.append(services.up(root=root, only=["redis"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({service.pids for each in found for service in each.all()}) == 1
    assert len(found) == 4


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_postgres_keeps_what_was_committed(private: PrivateServices, how: services.How) -> None:
    url, table = private.services.environment()["PERDURE_LOG"], f"kept_{how}"
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE TABLE {table} AS SELECT 42 AS answer")
    idle = psycopg.connect(url)  # a session that is open when the server ends
    services.stop("postgres", private.root, how=how)
    assert not _running(private.root, "postgres")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url).close()
    idle.close()
    again = services.start("postgres", private.root)
    assert (again.url, again.running) == (url, True)
    with psycopg.connect(url) as connection:
        assert connection.execute(f"SELECT answer FROM {table}").fetchone() == (42,)


@pytest.mark.parametrize("how", ["fast", "kill"])
def test_redis_comes_back_empty_on_its_port(private: PrivateServices, how: services.How) -> None:
    url = private.services.environment()["PERDURE_CACHE"]
    with Redis.from_url(url) as client:
        client.set("key", "value")
        services.stop("redis", private.root, how=how)
        assert services.start("redis", private.root).url == url
        assert client.get("key") is None


@pytest.mark.parametrize("how", ["fast", "kill"])
def test_kafka_keeps_its_records(private: PrivateServices, how: services.How) -> None:
    bootstrap = private.services.environment()["PERDURE_BUS"].removeprefix("kafka://")
    topic = f"kept-{uuid.uuid4().hex}"
    asyncio.run(_produce(bootstrap, topic, copies=1))
    services.stop("kafka", private.root, how=how)
    assert not _running(private.root, "kafka")
    services.start("kafka", private.root)
    assert asyncio.run(_consume(bootstrap, topic)) == b"value"


def test_down_stops_and_up_finds_ports_and_data_again(private: PrivateServices) -> None:
    url = private.services.environment()["PERDURE_LOG"]
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE survives_down ()")
    services.down(private.root)
    found = services.status(private.root)
    assert [(service.running, service.pids) for service in found.all()] == [(False, ())] * 3
    assert found.environment() == private.services.environment()
    assert found.environment(running=True) == {}
    services.up(root=private.root)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regclass('survives_down') IS NOT NULL").fetchone() == (True,)


def test_logs_show_the_end_of_each_servers_log(private: PrivateServices) -> None:
    assert "ready to accept connections" in services.logs(private.root, "postgres")
    assert "Ready to accept connections" in services.logs(private.root, "redis")
    assert "Kafka Server started" in services.logs(private.root, "kafka", 1000)
    assert len(services.logs(private.root, "kafka", 3).splitlines()) == 3


def test_three_brokers_live_through_the_loss_of_one(private_services: Factory) -> None:
    private = private_services("kafka", kafka_brokers=3)
    kafka = private.services.kafka
    assert kafka is not None
    assert len(kafka.pids) == 3
    bootstrap = kafka.url.removeprefix("kafka://")
    topic = f"three-{uuid.uuid4().hex}"
    asyncio.run(_produce(bootstrap, topic, copies=3))
    services.stop("kafka", private.root, how="kill", broker=2)
    lost = services.status(private.root).kafka
    assert lost is not None
    assert (lost.running, lost.pids) == (False, (kafka.pids[0], kafka.pids[2]))
    assert asyncio.run(_consume(bootstrap, topic)) == b"value"
    back = services.start("kafka", private.root, broker=2)
    assert (back.running, back.url) == (True, kafka.url)
    assert services.logs(private.root, "kafka", 1).count("==>") == 3
    same = services.up(root=private.root, only=["kafka"]).kafka  # the default of one broker keeps the three
    assert same is not None
    assert len(same.pids) == 3
    for broker in (1, 2, 3):  # the last ones have no majority that could agree to an orderly end
        services.stop("kafka", private.root, broker=broker)


def test_a_recycled_pid_is_neither_trusted_nor_killed(root: Path, sleeper: subprocess.Popen[bytes]) -> None:
    services.up(root=root, only=["redis"])
    services.stop("redis", root)
    records = state.load(root)
    gone = records["redis"].processes[0]
    assert gone is not None
    records["redis"].processes = [Process(sleeper.pid, gone.started)]
    state.save(root, records)
    assert not _running(root, "redis")
    services.stop("redis", root, how="kill")
    services.down(root)
    assert sleeper.poll() is None
    assert services.up(root=root, only=["redis"]).redis != services.status(root).postgres
    assert sleeper.poll() is None


def test_a_server_that_died_is_started_again_by_up(root: Path) -> None:
    first = services.up(root=root, only=["redis"]).redis
    assert first is not None
    records = state.load(root)
    process.send(records["redis"].processes[0], signal.SIGKILL)
    while _running(root, "redis"):
        pass
    second = services.up(root=root, only=["redis"]).redis
    assert second is not None
    assert (second.url, second.running) == (first.url, True)
    assert second.pids != first.pids


def test_servers_outlive_the_command_that_started_them(root: Path) -> None:
    _command("up", "--root", str(root), "--only", "redis")
    shown = json.loads(_command("status", "--root", str(root), "--json"))
    assert shown["services"]["redis"]["running"]
    with Redis.from_url(shown["environment"]["PERDURE_CACHE"]) as client:
        assert client.ping()
    _command("down", "--root", str(root), "--wipe")
    assert not (root / "services.json").exists()
    assert services.status(root) == services.Services()


def test_a_wipe_takes_all_data_also_from_a_root_that_only_its_owner_can_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    found = services.up(root=closed, only=["postgres"]).postgres
    assert found is not None
    folder = Path(found.data_folder)
    assert (folder / "PG_VERSION").exists()
    services.down(closed, wipe=True)
    assert not folder.parent.parent.exists()
    assert not closed.exists()


def test_a_port_that_somebody_else_took_is_said_and_left_alone(root: Path) -> None:
    services.up(root=root, only=["redis"])
    services.stop("redis", root)
    port = state.load(root)["redis"].ports[0]
    with subprocess.Popen(["redis-server", "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL) as other:
        while state.port_is_free(port):
            pass
        with pytest.raises(Unavailable, match="used by another process"):
            services.start("redis", root)
        assert other.poll() is None
        other.terminate()


def test_a_server_whose_data_somebody_removed_says_so_and_begins_anew_when_it_is_told_to(root: Path) -> None:
    services.up(root=root, only=["redis"])
    services.stop("redis", root)
    shutil.rmtree(state.load(root)["redis"].data_folder)
    with pytest.raises(Unavailable, match="were removed") as caught:
        services.up(root=root, only=["redis"])
    assert "--wipe" in caught.value.hint
    services.down(root, wipe=True)
    found = services.up(root=root, only=["redis"]).redis
    assert found is not None
    assert found.running


def test_a_server_that_cannot_start_tells_the_end_of_its_log(root: Path) -> None:
    services.up(root=root, only=["postgres"])
    services.stop("postgres", root)
    configuration = Path(state.load(root)["postgres"].data_folder) / "postgresql.conf"
    configuration.write_text("no_such_setting = 1\n", encoding="utf-8")
    with pytest.raises(Unavailable, match="ended while it started") as caught:
        services.start("postgres", root)
    assert "no_such_setting" in caught.value.hint


def test_a_given_url_is_used_as_it_is_and_never_controlled(private: PrivateServices, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = private.services.environment()["PERDURE_CACHE"]
    monkeypatch.setenv("PERDURE_SERVICES_REDIS_URL", given)
    found = services.up(root=root, only=["redis"]).redis
    assert found is not None
    assert (found.url, found.origin, found.running, found.pids) == (given, "url", True, ())
    with pytest.raises(ConfigurationError, match="PERDURE_SERVICES_REDIS_URL"):
        services.stop("redis", root)
    services.down(root)
    assert Redis.from_url(given).ping()


def test_a_given_url_that_does_not_answer_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = state.free_ports(1)[0]
    for name, url in {"POSTGRES": "postgresql://a:secret@127.0.0.1:{}/b", "REDIS": "redis://127.0.0.1:{}", "KAFKA": "127.0.0.1:{}"}.items():
        monkeypatch.setenv(f"PERDURE_SERVICES_{name}_URL", url.format(port))
        lines: list[str] = []
        with pytest.raises(Unavailable, match="does not answer"):
            services.up(root=root, only=[name.lower()], progress=lines.append)
        assert "secret" not in "".join(lines)
        assert not _running(root, name.lower())


def test_a_missing_program_names_its_packages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("perdure.services.redis.PLACES", ())
    monkeypatch.setattr("perdure.services.jars.JAVA_PLACES", ())
    for name, package in {"redis": "redis-server", "kafka": "openjdk"}.items():
        with pytest.raises(MissingDependency) as caught:
            services.up(root=root, only=[name])
        assert package in caught.value.hint
    assert services.status(root) == services.Services()


def test_wrong_requests_are_refused(root: Path, private: PrivateServices) -> None:
    with pytest.raises(InvalidInput, match="no service named"):
        services.up(root=root, only=["mysql"])
    with pytest.raises(InvalidInput, match="1 or 3 brokers"):
        services.up(root=root, kafka_brokers=2)
    with pytest.raises(NotFound, match="never started"):
        services.stop("postgres", root)
    with pytest.raises(InvalidInput, match="no broker 2"):
        services.stop("kafka", private.root, broker=2)
    with pytest.raises(InvalidInput, match="no broker 1"):
        services.stop("redis", private.root, broker=1)
    with pytest.raises(ConfigurationError, match="3 are asked for"):
        services.up(root=private.root, only=["kafka"], kafka_brokers=3)


def test_the_command_ends_with_the_errors_code_and_a_hint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["logs", "redis", "--root", str(root)]) == NotFound.exit_code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: redis was never started here\nhint: perdure services up\n")
    assert command.main(["logs", "redis", "--root", str(root), "--json"]) == NotFound.exit_code
    assert json.loads(capsys.readouterr().out)["code"] == "not_found"
    assert command.main(["status", "--root", str(root)]) == Unavailable.exit_code


def test_damaged_records_are_said_not_overwritten(root: Path) -> None:
    (root / "services.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="damaged"):
        services.up(root=root, only=["redis"])
    assert (root / "services.json").read_text(encoding="utf-8") == "{"
    (root / "services.json").unlink()


def test_each_test_gets_a_database_of_its_own(fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as connection:
        row = connection.execute("SELECT current_database(), (SELECT count(*) FROM pg_stat_user_tables)").fetchone()
    assert row is not None
    assert row[0].startswith("test_")
    assert row[1] == 0


def test_processes_that_share_the_tests_look_for_ports_in_places_of_their_own() -> None:
    each = [ports_of_process(number, 3) for number in range(3)]
    assert len({port for ports in each for port in ports}) == sum(map(len, each)) > 10_000
    assert all(15_000 <= port < 30_000 for ports in each for port in ports)


def test_the_shared_servers_answer(redis_url: str, kafka_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        assert client.ping()
    topic = f"shared-{uuid.uuid4().hex}"
    asyncio.run(_produce(kafka_url, topic, copies=1))
    assert asyncio.run(_consume(kafka_url, topic)) == b"value"


def _running(root: Path, name: str) -> bool:
    service = getattr(services.status(root), name)
    return service is not None and service.running


def _command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "perdure.services", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def _produce(bootstrap: str, topic: str, copies: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=copies)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait(topic, b"value")
    await producer.stop()


async def _consume(bootstrap: str, topic: str) -> bytes | None:
    async with AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        message = await asyncio.wait_for(consumer.getone(), 60)
    value = message.value
    assert value is None or isinstance(value, bytes)
    return value


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = [sys.executable, "-m", "perdure.services", "status", "--json", "--root", str(tmp_path)]
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
