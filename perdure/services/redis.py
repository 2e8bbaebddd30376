"""Redis from the machine's own binary: a cache without persistence, because everything in it can be rebuilt."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from perdure.errors import MissingDependency
from perdure.services import probe, process, state
from perdure.services.binary import Binary
from perdure.services.model import Record, Tell

__all__ = ["Redis"]

OLDEST_MAJOR = 7
HINT = "apt-get install redis-server  |  brew install redis  |  or set PERDURE_SERVICES_REDIS_URL"
PLACES = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin")


class Redis(Binary):
    """One server; whatever it holds is gone when it ends."""

    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Find the program and make the folder."""
        _, version = _program()
        tell(f"redis: using redis-server {version}")
        folder = root / "redis"
        folder.mkdir(mode=0o700, exist_ok=True)
        return Record(
            name="redis",
            origin="binary",
            version=version,
            data_folder=str(folder),
            ports=state.free_ports(nodes),
            log_files=[str(root / "redis.log")],
            processes=[None] * nodes,
        )

    def launch(self, record: Record, node: int) -> None:
        """Start it with a freshly written configuration."""
        program, record.version = _program()
        folder = Path(record.data_folder)
        settings = {
            "bind": "127.0.0.1",
            "port": str(record.ports[node - 1]),
            "dir": f'"{folder}"',
            "daemonize": "no",
            "appendonly": "no",
            "save": '""',
        }
        lines = [f"{key} {value}\n" for key, value in settings.items()]
        (folder / "redis.conf").write_text("".join(lines), encoding="utf-8")
        command = [program, str(folder / "redis.conf")]
        record.processes[node - 1] = process.spawn(command, log_file=Path(record.log_files[node - 1]), folder=folder)

    def ready(self, record: Record, node: int) -> None:
        """It answers PING."""
        probe.redis(f"redis://127.0.0.1:{record.ports[node - 1]}/0")


def _program() -> tuple[str, str]:
    """The program and its version."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path=":".join(PLACES))
    if found is None:
        raise MissingDependency("redis-server is not installed", hint=HINT)
    line = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)([.\d]*)", line)
    if version is None or int(version[1]) < OLDEST_MAJOR:
        raise MissingDependency(f"Redis {OLDEST_MAJOR} or newer is needed, {found} is: {line.strip()}", hint=HINT)
    return found, version[1] + version[2]
