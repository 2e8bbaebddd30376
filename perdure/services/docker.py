"""The same servers as containers, where Docker works: Testcontainers creates them, the `docker` command controls them.

Data lives in the container, which is kept when it is stopped, and removed by a wipe. Kafka runs as one broker here; three
take the machine's own Java.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import MissingDependency, Unavailable
from perdure.services import kafka, postgres, probe, state
from perdure.services.model import How, Record, Tell

__all__ = ["Docker", "available"]

IMAGES = {"postgres": "postgres:17-alpine", "redis": "redis:7-alpine", "kafka": "apache/kafka:4.1.0"}
INFO_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 120


class Docker:
    """A way (see `model.Way`) whose one node is a container."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Pull the image and start a new container."""
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        # Its reaper would remove the containers with this process; they are to outlive it.
        testcontainers_config.ryuk_disabled = True
        ports = state.free_ports(2 * nodes)
        image = IMAGES[self.name]
        record = Record(
            name=self.name,
            origin="docker",
            version=image.partition(":")[2],
            data_folder="",
            ports=ports[:nodes],
            controller_ports=ports[nodes:],
            log_files=[],
            processes=[None] * nodes,
        )
        inner, environment, command = _setup(record)
        tell(f"{self.name}: starting a container of {image}")
        container = DockerContainer(image).with_envs(**environment)
        container.ports[f"{inner}/tcp"] = ("127.0.0.1", record.ports[0])  # type: ignore[assignment]
        if command:
            container.with_command(command)
        container.with_kwargs(shm_size="256m", labels={"perdure.services.root": str(root)})
        record.containers = [_started(container, self.name)]
        record.data_folder = f"docker:{record.containers[0][:12]}"
        return record

    def launch(self, record: Record, node: int) -> None:
        """Start the container again."""
        _docker("start", record.containers[node - 1])

    def ready(self, record: Record, node: int) -> None:
        """Raise `Unavailable` while the server does not really answer."""
        if self.alive(record, node):
            probe.answer(self.name, record.url)
        else:
            raise Unavailable(f"the container of {self.name} does not run")

    def alive(self, record: Record, node: int) -> bool:
        """Whether the container runs."""
        return _pid(record.containers[node - 1]) != 0

    def pids(self, record: Record) -> tuple[int, ...]:
        """The containers' first processes, as their host numbers them."""
        return tuple(pid for container in record.containers if (pid := _pid(container)))

    def signal(self, record: Record, node: int, how: How) -> None:
        """Signal the container's first process."""
        orderly = "SIGINT" if self.name == "postgres" else "SIGTERM"
        abrupt = "SIGQUIT" if self.name == "postgres" and how == "immediate" else "SIGKILL"
        _docker("kill", "--signal", orderly if how == "fast" else abrupt, record.containers[node - 1])

    def log_tail(self, record: Record, node: int, lines: int) -> str:
        """The last lines of the container's output."""
        done = _run("logs", "--tail", str(lines), record.containers[node - 1])
        return (done.stdout + done.stderr).rstrip("\n")

    def remove(self, record: Record) -> None:
        """Remove the container with its data."""
        for container in record.containers:
            _docker("rm", "--force", "--volumes", container)


def available() -> bool:
    """Whether a Docker server answers and Testcontainers is installed."""
    if shutil.which("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return False
    try:
        done = _run("info", "--format", "{{json .ServerVersion}}", timeout_s=INFO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    # Some versions of the command answer without a server, and say so in place of the server's version only.
    return done.returncode == 0 and bool(msgspec.json.decode(done.stdout.strip() or '""'))


def _started(container: Any, name: str) -> str:
    """Start a new container; its id. Nothing is left of one that does not start."""
    from docker.errors import DockerException  # type: ignore[import-untyped]

    try:
        return str(container.start().get_wrapped_container().id)
    except (DockerException, OSError) as error:
        with contextlib.suppress(DockerException, OSError):
            container.stop()
        hint = "is its image reachable? without Docker's server, the machine's own programs are used"
        raise Unavailable(f"the container of {name} cannot be started: {' '.join(str(error).split())}", hint=hint) from error


def _pid(container: str) -> int:
    """The container's first process; 0 when it does not run or is gone."""
    done = _run("inspect", "--format", "{{.State.Pid}}", container)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def _setup(record: Record) -> tuple[int, dict[str, str], list[str]]:
    """The port inside, the environment and the command of a container."""
    if record.name == "postgres":
        environment = {"POSTGRES_USER": "perdure", "POSTGRES_DB": "perdure", "POSTGRES_HOST_AUTH_METHOD": "trust"}
        settings = {**postgres.SETTINGS, "listen_addresses": "*"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return 5432, {**environment, "POSTGRES_INITDB_ARGS": "--data-checksums"}, ["postgres", *options]
    if record.name == "redis":
        return 6379, {}, ["redis-server", "--save", "", "--appendonly", "no"]
    # The broker reaches itself by the address that it advertises, so it has the same port inside as outside.
    port, controller = record.ports[0], record.controller_ports[0]
    settings = kafka.properties(record, 1)
    settings["listeners"] = f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://127.0.0.1:{controller}"
    settings["log.dirs"] = "/tmp/kraft-combined-logs"  # noqa: S108 - in the container
    return port, {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()}, []


def _docker(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode != 0:
        raise Unavailable(f"docker {arguments[0]} failed: {' '.join(done.stderr.split())}")


def _run(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker")
    if program is None:
        raise MissingDependency("the docker command is gone, with which these containers were started")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=timeout_s)
