"""Postgres from the machine's own binaries."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import zlib
from pathlib import Path

from perdure.errors import ConfigurationError, MissingDependency, Unavailable
from perdure.services import probe, process, state
from perdure.services.binary import Binary
from perdure.services.model import How, Record, Tell

__all__ = ["SETTINGS", "Postgres", "create_database"]

OLDEST_MAJOR = 15
INITDB_TIMEOUT_S = 120
# The address of a Unix socket is at most 107 bytes on Linux, 103 on macOS, the file's name included.
SOCKET_FOLDER_BYTES = 80

HINT = "apt-get install postgresql  |  brew install postgresql@17  |  or set PERDURE_SERVICES_POSTGRES_URL"

# What makes a commit durable (fsync, synchronous_commit, full_page_writes) stays at its default, on.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "max_locks_per_transaction": "1024",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Postgres(Binary):
    """One cluster in its own folder, data checksums on."""

    def create(self, root: Path, nodes: int, tell: Tell) -> Record:
        """Find the programs, choose the place, make the cluster."""
        user = _server_user()
        home = _home(root, user)
        cluster = home / "data"
        programs = _programs(cluster)
        version = _version(programs)
        if not cluster.exists():
            tell(f"postgres: making a cluster with Postgres {version} in {cluster}")
            _initdb(programs, cluster, user)
        return Record(
            name="postgres",
            origin="binary",
            version=version,
            data_folder=str(cluster),
            ports=state.free_ports(nodes),
            log_files=[str(root / "postgres.log")],
            processes=[None] * nodes,
        )

    def launch(self, record: Record, node: int) -> None:
        """Start the postmaster, its settings freshly written."""
        cluster = Path(record.data_folder)
        programs = _programs(cluster)
        user = _server_user()
        sockets = cluster.parent / "sockets"
        _own_folder(sockets, user)
        long = len(os.fsencode(sockets)) > SOCKET_FOLDER_BYTES
        settings = {**SETTINGS, "port": str(record.ports[node - 1]), "unix_socket_directories": "" if long else str(sockets)}
        lines = [f"{key} = '{value}'\n" for key, value in settings.items()]
        (cluster / "perdure.conf").write_text("".join(lines), encoding="utf-8")
        (cluster / "perdure.conf").chmod(0o644)
        log_file = Path(record.log_files[node - 1])
        command = [str(programs / "postgres"), "-D", str(cluster)]
        record.processes[node - 1] = process.spawn(command, log_file=log_file, folder=cluster, user=user)
        record.version = _version(programs)

    def ready(self, record: Record, node: int) -> None:
        """It answers, and its database is there."""
        create_database(record.ports[node - 1])

    def signal(self, record: Record, node: int, how: How) -> None:
        """fast: end sessions, checkpoint; immediate: as in a crash; kill: no process of it lives to do anything."""
        postmaster = record.processes[node - 1]
        if postmaster is None or not process.alive(postmaster):
            return
        if how != "kill":
            process.send(postmaster, signal.SIGINT if how == "fast" else signal.SIGQUIT)
            return
        # Backends outlive a killed postmaster for a moment and would keep the next one from starting. Held still, it makes no new ones.
        process.send(postmaster, signal.SIGSTOP)
        for each in (*process.children(postmaster), postmaster):
            process.send(each, signal.SIGKILL)

    def remove(self, record: Record) -> None:
        """Delete the cluster and its folder."""
        super().remove(record)
        home = Path(record.data_folder).parent
        if home.exists():
            shutil.rmtree(home)
        if home.parent.parent == _fallback_base() and home.parent.exists():
            home.parent.rmdir()


def create_database(port: int) -> None:
    """Make the database `perdure` where it is missing."""
    url = f"postgresql://perdure@127.0.0.1:{port}/postgres"
    probe.postgres(url)
    import psycopg

    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=probe.PROBE_TIMEOUT_S) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'perdure'").fetchone():
                connection.execute("CREATE DATABASE perdure")
    except psycopg.Error as error:
        raise Unavailable(f"Postgres does not answer: {error}") from error


def _programs(cluster: Path) -> Path:
    """The folder of the newest usable server programs; for a cluster that exists those of its own major version."""
    found = _installed()
    version_file = cluster / "PG_VERSION"
    if version_file.exists():
        major = int(version_file.read_text(encoding="ascii"))
        if major not in found:
            hint = f"install Postgres {major} again, or make a new cluster: perdure services down --wipe"
            raise MissingDependency(f"{cluster} was made by Postgres {major}, which is not installed", hint=hint)
        return found[major]
    usable = [major for major in found if major >= OLDEST_MAJOR]
    if not usable:
        raise MissingDependency(f"Postgres {OLDEST_MAJOR} or newer is not installed", hint=HINT)
    return found[max(usable)]


def _installed() -> dict[int, Path]:
    """Major version -> folder of its programs. Links are followed: `postgres` finds its own files beside it."""
    folders = []
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(answer.stdout.strip()))
    folders += Path("/usr/lib/postgresql").glob("*/bin")
    for brew in (Path("/opt/homebrew/opt"), Path("/usr/local/opt"), Path("/home/linuxbrew/.linuxbrew/opt")):
        folders += brew.glob("postgresql*/bin")
    complete = [folder for folder in folders if (folder / "postgres").is_file() and (folder / "initdb").is_file()]
    return {int(_version(folder).split(".")[0]): folder for folder in complete}


def _version(programs: Path) -> str:
    line = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)*", line)
    if found is None:
        raise ConfigurationError(f"{programs / 'postgres'} does not tell its version: {line!r}")
    return found[0]


def _initdb(programs: Path, cluster: Path, user: str | None) -> None:
    """Make the cluster beside its place, then move it there: an interrupted initdb is never taken for a cluster."""
    _own_folder(cluster.parent, user)
    fresh = cluster.with_name("data.new")
    if fresh.exists():
        shutil.rmtree(fresh)
    locale = "C.UTF-8" if sys.platform == "linux" else "C"
    command = [str(programs / "initdb"), "-D", str(fresh), "--data-checksums", "-U", "perdure", "-A", "trust"]
    command += [f"--locale={locale}", "-E", "UTF8"]
    group = None if user is None else pwd.getpwnam(user).pw_gid
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cluster.parent,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
        timeout=INITDB_TIMEOUT_S,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"initdb failed: {' '.join(last)}", hint=f"its programs are in {programs}")
    with (fresh / "postgresql.conf").open("a", encoding="utf-8") as handle:
        handle.write("\ninclude 'perdure.conf'\n")
    fresh.rename(cluster)


def _server_user() -> str | None:
    """As whom Postgres runs: ourselves (None), except that it refuses root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    raise ConfigurationError("Postgres refuses to run as root, and there is no user postgres or nobody", hint=HINT)


def _home(root: Path, user: str | None) -> Path:
    """Where cluster and sockets go: in the root, or where another user can reach them when root's folders are closed."""
    if user is None or _reachable(root, user):
        return root / "postgres"
    base = _fallback_base()
    base.mkdir(mode=0o711, exist_ok=True)
    # Anybody may write to /var/tmp: what is there under our name must really be ours.
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigurationError(f"{base} is not a folder of our own", hint="remove it, or choose another --root")
    base.chmod(0o711)
    folder = base / f"{root.name}-{zlib.crc32(os.fsencode(root)):08x}"
    folder.mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)
    return folder / "postgres"


def _fallback_base() -> Path:
    return Path("/var/tmp") / f"perdure-services-{os.geteuid()}"  # noqa: S108 - who owns it is checked before it is used


def _reachable(folder: Path, user: str) -> bool:
    """Whether the user may pass through the folder and all above it."""
    entry = pwd.getpwnam(user)
    for each in (folder.resolve(), *folder.resolve().parents):
        found = each.stat()
        if found.st_uid == entry.pw_uid:
            bit = stat.S_IXUSR
        elif found.st_gid == entry.pw_gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return False
    return True


def _own_folder(folder: Path, user: str | None) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)
