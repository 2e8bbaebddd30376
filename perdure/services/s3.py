"""An S3 service from this machine: versitygw over a folder, or moto's server where that is not there.

versitygw keeps what it has over a restart; moto has it in memory. Both listen on 127.0.0.1 only, so their credentials are no secret.
`python -m perdure.services build` builds versitygw with Go, once, which takes a minute or two; where neither is there, it is built when it is needed.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from perdure.errors import MissingDependency, Unavailable
from perdure.services import jars, probe, process, state
from perdure.services.binary import Binary
from perdure.services.model import S3_BUCKET, S3_CREDENTIALS, Record, Tell

__all__ = ["GATEWAY_VERSION", "S3", "build"]

GATEWAY_VERSION = "v1.8.0"
GATEWAY = "github.com/versity/versitygw/cmd/versitygw"
BUILD_TIMEOUT_S = 600
HINT = f"go install {GATEWAY}@{GATEWAY_VERSION}  |  pip install 'moto[server]'  |  or set PERDURE_SERVICES_S3_URL"
_MOTO = "moto"


class S3(Binary):
    """One server with one bucket."""

    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Find or build the program and make the bucket's folder."""
        program = _gateway()
        if program is None and importlib.util.find_spec("moto.server") is None:
            program = build(tell)
            if program is None:
                raise MissingDependency("neither versitygw nor moto is installed", hint=HINT)
        version = GATEWAY_VERSION if program else _MOTO
        tell(f"s3: using {program or 'moto'}")
        folder = root / "s3"
        (folder / S3_BUCKET).mkdir(parents=True, mode=0o700, exist_ok=True)
        return Record(
            name="s3",
            origin="binary",
            version=version,
            data_folder=str(folder),
            ports=state.free_ports(nodes),
            log_files=[str(root / "s3.log")],
            processes=[None] * nodes,
        )

    def launch(self, record: Record, node: int) -> None:
        """Start it on its port."""
        port = str(record.ports[node - 1])
        if record.version == _MOTO:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        else:
            program = _gateway()
            if program is None:
                raise MissingDependency("versitygw is gone, with which this S3 service was made", hint=HINT)
            who = ["--access", S3_CREDENTIALS["AWS_ACCESS_KEY_ID"], "--secret", S3_CREDENTIALS["AWS_SECRET_ACCESS_KEY"]]
            command = [str(program), "--port", f"127.0.0.1:{port}", "--quiet", *who, "posix", record.data_folder]
        folder = Path(record.data_folder)
        record.processes[node - 1] = process.spawn(command, log_file=Path(record.log_files[node - 1]), folder=folder)

    def ready(self, record: Record, node: int) -> None:
        """Its bucket answers."""
        if record.version == _MOTO:
            _make_bucket(record.ports[node - 1])
        probe.s3(record.url, S3_CREDENTIALS)


def _gateway() -> Path | None:
    """versitygw: of this machine, or built before."""
    if found := shutil.which("versitygw"):
        return Path(found)
    built = _folder() / "versitygw"
    return built if built.is_file() else None


def _folder() -> Path:
    return jars.cache_folder() / f"versitygw-{GATEWAY_VERSION}"


def build(tell: Tell) -> Path | None:
    """versitygw, built into the user's cache where it is not there yet; None where there is no Go, or Go cannot."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/opt/homebrew/bin")
    if _gateway() is not None or go is None:
        return _gateway()
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _gateway() is None:  # another may have built it while we waited
            tell(f"s3: building versitygw {GATEWAY_VERSION} (once) into {folder}")
            _install(go, folder, tell)
    return _gateway()


def _install(go: str, folder: Path, tell: Tell) -> None:
    new = folder / "new"
    command = [go, "install", f"{GATEWAY}@{GATEWAY_VERSION}"]
    environment = {**os.environ, "GOBIN": str(new)}
    try:
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.SubprocessError as error:
        tell(f"s3: versitygw cannot be built: {' '.join((getattr(error, 'stderr', '') or str(error)).split())[-200:]}")
        return
    (new / "versitygw").rename(folder / "versitygw")
    new.rmdir()


def _make_bucket(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=probe.PROBE_TIMEOUT_S)
    try:
        connection.request("PUT", f"/{S3_BUCKET}")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"moto does not answer: {error}") from error
    finally:
        connection.close()
