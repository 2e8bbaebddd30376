"""Kafka in KRaft mode from its jars: one or three nodes, each broker and controller."""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

from perdure.errors import Unavailable
from perdure.services import jars, probe, process, state
from perdure.services.binary import Binary
from perdure.services.model import How, Record, Tell

__all__ = ["Kafka", "properties"]

HEAP = "512m"
FORMAT_TIMEOUT_S = 60
JAVA_OPTIONS: tuple[str, ...] = ()
"""More options of the brokers' Java; tests take those with which a broker is up soonest."""

_LOGGING = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="[%d] %p %m (%c{1})%n"/></Console></Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class Kafka(Binary):
    """A cluster of one or three brokers on 127.0.0.1."""

    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Find Java, fetch the jars, format the nodes' folders."""
        jars.java()
        jars.libraries(tell)
        folder = root / "kafka"
        ports = state.free_ports(2 * nodes)
        record = Record(
            name="kafka",
            origin="binary",
            version=jars.KAFKA_VERSION,
            data_folder=str(folder),
            ports=ports[:nodes],
            controller_ports=ports[nodes:],
            log_files=[str(root / f"kafka-{node}.log") for node in range(1, nodes + 1)],
            processes=[None] * nodes,
            cluster_id=_cluster_id(),
        )
        for node in record.nodes:
            tell(f"kafka: formatting broker {node}")
            _format(record, node)
        return record

    def launch(self, record: Record, node: int) -> None:
        """Start one broker."""
        command = [*_java(record), *JAVA_OPTIONS, f"-Xmx{HEAP}", "-Xms128m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"]
        command += ["-Djava.awt.headless=true", "kafka.Kafka", str(_write_properties(record, node))]
        log_file = Path(record.log_files[node - 1])
        record.processes[node - 1] = process.spawn(command, log_file=log_file, folder=_folder(record, node))

    def ready(self, record: Record, node: int) -> None:
        """The broker knows itself and its living neighbours as members. Without a majority no broker can answer: not waited for."""
        living = self._living(record)
        if 2 * len(living) > len(record.ports):
            probe.kafka(f"127.0.0.1:{record.ports[node - 1]}", living)

    def signal(self, record: Record, node: int, how: How) -> None:
        """fast: a controlled shutdown, which needs a majority of controllers: without one the broker would wait for it, so it is killed."""
        orderly = 2 * len(self._living(record)) > len(record.ports)
        super().signal(record, node, how if orderly else "kill")

    def _living(self, record: Record) -> list[int]:
        return [each for each in record.nodes if self.alive(record, each)]


def properties(record: Record, node: int) -> dict[str, str]:
    """The settings of one node; replication fits the number of nodes."""
    voters = [f"{each}@127.0.0.1:{port}" for each, port in enumerate(record.controller_ports, start=1)]
    copies = len(record.ports)
    in_sync = copies // 2 + 1
    broker, controller = record.ports[node - 1], record.controller_ports[node - 1]
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": ",".join(voters),
        "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(_folder(record, node) / "data"),
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(copies),
        "offsets.topic.num.partitions": "16",
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": str(in_sync),
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker is let in again when its old session has ended: a little sooner than the default of 9 s.
        "broker.session.timeout.ms": "6000",
        "broker.heartbeat.interval.ms": "1000",
    }


def _format(record: Record, node: int) -> None:
    _folder(record, node).mkdir(parents=True, exist_ok=True)
    command = [*_java(record), "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "--ignore-formatted"]
    command += ["--cluster-id", record.cluster_id, "--config", str(_write_properties(record, node))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FORMAT_TIMEOUT_S)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"the folder of Kafka broker {node} cannot be formatted: {' '.join(last)}")


def _java(record: Record) -> list[str]:
    logging = Path(record.data_folder) / "log4j2.xml"
    logging.write_text(_LOGGING, encoding="utf-8")
    jar_folder = jars.libraries(lambda _: None)
    return [jars.java(), "-cp", f"{jar_folder}/*", f"-Dlog4j2.configurationFile={logging}", "-XX:-UsePerfData"]


def _write_properties(record: Record, node: int) -> Path:
    path = _folder(record, node) / "server.properties"
    lines = [f"{key}={value}\n" for key, value in properties(record, node).items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _folder(record: Record, node: int) -> Path:
    return Path(record.data_folder) / f"broker-{node}"


def _cluster_id() -> str:
    """A random UUID in Kafka's notation: URL-safe base64, 22 characters; one that looks like an option is not taken."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii")[:22]
        if not text.startswith("-"):
            return text
