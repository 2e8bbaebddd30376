"""Java, and Kafka's jars from Maven Central: fetched once, kept in the user's cache."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from perdure.errors import MissingDependency, Unavailable
from perdure.services.model import Tell

__all__ = ["KAFKA_VERSION", "cache_folder", "java", "libraries"]

KAFKA_VERSION = "4.1.0"
LOG4J_VERSION = "2.24.3"
OLDEST_JAVA = 17
FETCH_TIMEOUT_S = 600

HINT = "apt-get install openjdk-17-jre-headless maven  |  brew install openjdk maven  |  or set PERDURE_SERVICES_KAFKA_URL"
JAVA_PLACES = ("/opt/homebrew/opt/openjdk/bin", "/usr/local/opt/openjdk/bin", "/home/linuxbrew/.linuxbrew/opt/openjdk/bin")

# The last one lets Kafka write its log: the jars alone bring no binding for slf4j.
ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
)


def java() -> str:
    """The program `java`, 17 or newer."""
    homes = [os.path.join(home, "bin") for home in (os.environ.get("JAVA_HOME"),) if home]
    places = [*homes, *os.environ.get("PATH", "").split(os.pathsep), *JAVA_PLACES]
    for place in places:
        found = shutil.which("java", path=place) if place else None
        if found and _java_major(found) >= OLDEST_JAVA:
            return found
    raise MissingDependency(f"Java {OLDEST_JAVA} or newer is not installed (Kafka needs it)", hint=HINT)


def libraries(tell: Tell) -> Path:
    """The folder of Kafka's jars; fetched when it is not there yet."""
    cache = cache_folder()
    folder = cache / f"kafka-libs-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka-libs.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():  # another may have fetched it while we waited
            tell(f"kafka: fetching the jars of Kafka {KAFKA_VERSION} (54 MB, once) into {folder}")
            _fetch(folder)
    return folder


def cache_folder() -> Path:
    """Where what is fetched or built once is kept: $PERDURE_CACHE_DIR, else perdure in the user's cache."""
    if named := os.environ.get("PERDURE_CACHE_DIR"):
        return Path(named).expanduser().absolute()
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "perdure"


def _fetch(folder: Path) -> None:
    """Copy the jars into a temporary folder, then rename: a folder of that name is always whole."""
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingDependency("mvn is not installed (it fetches Kafka's jars, once)", hint=HINT)
    with tempfile.TemporaryDirectory(prefix="kafka-libs-", dir=folder.parent) as scratch:
        (Path(scratch) / "pom.xml").write_text(_pom(), encoding="utf-8")
        command = [maven, "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT_S)
        if done.returncode != 0:
            reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
            raise Unavailable(f"Kafka's jars cannot be fetched: {reason}", hint="mvn needs a way to Maven Central, once")
        (Path(scratch) / "libs").rename(folder)


def _pom() -> str:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>\n"
        for group, artifact, version in ARTIFACTS
    )
    return f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>perdure</groupId><artifactId>kafka-libs</artifactId><version>1</version>
<dependencies>
{dependencies}</dependencies></project>
"""


def _java_major(program: str) -> int:
    """0 when it does not tell (macOS has a `java` that only asks to be installed)."""
    answer = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', answer.stderr)
    return int(found[1]) if found else 0
