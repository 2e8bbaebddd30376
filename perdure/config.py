"""Settings: where the log, the bus, the cache, the store and the keys are. Flag > environment > file > default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from perdure.errors import ConfigurationError

__all__ = ["Setting", "Settings", "load", "masked"]

FILE_DEFAULT: Final = "perdure.toml"
LOG_DEFAULT: Final = "sqlite:///./perdure-state"
_NAMES: Final = ("log", "bus", "cache", "store", "keys", "training")
_SCHEMES: Final = {
    "log": ("sqlite", "postgresql", "postgres"),
    "bus": ("memory", "kafka"),
    "cache": ("memory", "redis", "rediss"),
    "store": ("file", "s3"),
    "keys": ("file", "env", "vault"),
}
_MASK: Final = "***"
_WORDS: Final = {"training": ("auto", "off")}


class Setting(msgspec.Struct, frozen=True):
    """A value and where it comes from: flag, environment, file, default."""

    value: str | None
    source: str


class Settings(msgspec.Struct, frozen=True):
    """What an engine is opened with. training: `auto`, or `off`: no dictionary is trained unless somebody asks for it."""

    log: Setting
    bus: Setting
    cache: Setting
    store: Setting
    keys: Setting
    training: Setting = Setting("auto", "default")

    @property
    def embedded(self) -> bool:
        """Whether the log is a folder of this machine."""
        return str(self.log.value).startswith("sqlite:")

    @property
    def folder(self) -> Path:
        """The folder of an embedded log."""
        return sqlite_folder(str(self.log.value))


def sqlite_folder(url: str) -> Path:
    """The folder that `sqlite:///./relative/path` or `sqlite:////absolute/path` names. Raises ConfigurationError, also for what looks like an
    absolute path with a slash too few: in the wrong folder a log would be made anew, and the old one would seem to be lost."""
    path = url.removeprefix("sqlite:")
    if not path.startswith("///") or len(path) < 4:
        raise ConfigurationError(f"{url!r} names no folder", hint="write sqlite:///./folder or sqlite:////absolute/folder")
    written = path[3:]
    if _slash_too_few(written):
        raise ConfigurationError(
            f"{url!r} is below the working folder, where less of it is there than of /{written}",
            hint=f"write sqlite:////{written} for /{written}, or sqlite:///./{written} if it is meant like this",
        )
    try:
        return Path(written).expanduser()
    except RuntimeError as problem:
        raise ConfigurationError(f"{url!r} names the home of nobody on this machine", hint="write sqlite:////absolute/folder") from problem


def _slash_too_few(written: str) -> bool:
    """Whether a relative path was meant as an absolute one: it begins like a path of /, such as tmp/… or var/…, and more of that is there."""
    if Path(written).parts[:1] in ((), ("..",)) or written.startswith(("./", "~", "/")):
        return False
    return _there(Path("/", written)) > _there(Path(written))


def _there(path: Path) -> int:
    """How many of the folders that lead to it, and itself, are there."""
    return sum(each.exists() for each in (path, *path.parents) if each.name)


def load(flags: Mapping[str, str | None] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in force. flags: by name, `config` names the file. Raises ConfigurationError."""
    flags = flags or {}
    if wrong := [name for name, value in flags.items() if value is not None and not isinstance(value, str)]:
        kind = type(flags[wrong[0]]).__name__
        raise ConfigurationError(
            f"{wrong[0]} is a {kind}, not a URL", hint="write it out, e.g. sqlite:///./folder or file:///absolute/folder"
        )
    environment = os.environ if environment is None else environment
    file = _file(flags.get("config") or environment.get("PERDURE_CONFIG"))
    found = {name: _find(name, flags, environment, file) for name in _NAMES}
    log = found["log"].value or LOG_DEFAULT
    embedded = log.startswith("sqlite:")
    defaults: dict[str, str | None] = {"log": LOG_DEFAULT, "bus": "memory://", "cache": "memory://", "store": None, "training": "auto"}
    defaults["keys"] = f"file://{(sqlite_folder(log) if embedded else _home()).resolve()}/keys/root.key"
    # Snapshots of an embedded log lie beside it; those of a server's log need a place that all processes reach, which only you can name.
    defaults["store"] = f"file://{quote(str(sqlite_folder(log).resolve()))}/snapshots" if embedded else None
    settings = {name: setting if setting.value is not None else Setting(defaults[name], "default") for name, setting in found.items()}
    for name, setting in settings.items():
        _check(name, setting)
    return Settings(**settings)


def masked(url: str) -> str:
    """The URL without what is secret in it: the password, and every value of its query that is named like one."""
    parts = urlsplit(url)
    place = parts.netloc
    if "@" in place:
        who, _, where = place.rpartition("@")
        name, colon, _ = who.partition(":")
        place = f"{name}{colon}{_MASK if colon else ''}@{where}"
    pairs = [pair.partition("=") for pair in parts.query.split("&")] if parts.query else []
    secret = ("password", "secret", "token", "key")
    query = "&".join(f"{name}{sign}{_MASK if any(word in name.lower() for word in secret) else value}" for name, sign, value in pairs)
    return url if (place, query) == (parts.netloc, parts.query) else urlunsplit(parts._replace(netloc=place, query=query))


def _home() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "perdure"


def _file(name: str | None) -> dict[str, Any]:
    path = Path(name or FILE_DEFAULT)
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError as problem:
        if name is None:
            return {}
        raise ConfigurationError(f"there is no settings file {name}") from problem
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise ConfigurationError(f"settings file {path}: {problem}") from problem
    if unknown := content.keys() - set(_NAMES):
        raise ConfigurationError(f"settings file {path}: unknown setting {sorted(unknown)[0]!r}", hint=f"known are {', '.join(_NAMES)}")
    return content


def _find(name: str, flags: Mapping[str, str | None], environment: Mapping[str, str], file: Mapping[str, Any]) -> Setting:
    variable = f"PERDURE_{name.upper()}"
    if flags.get(name):
        return Setting(flags[name], "flag")
    if environment.get(variable):
        return Setting(environment[variable], f"environment {variable}")
    if environment.get(f"{variable}_FILE"):
        return Setting(_content(f"{variable}_FILE", Path(environment[f"{variable}_FILE"])), f"environment {variable}_FILE")
    if name in file:
        return Setting(str(file[name]), "file")
    return Setting(None, "default")


def _content(variable: str, path: Path) -> str:
    """The value that a file holds."""
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is no text"
        raise ConfigurationError(
            f"{variable} names {path}: {reason}", hint="name a file that holds the value and nothing else"
        ) from problem
    if not value:
        raise ConfigurationError(f"{variable} names {path}, which is empty", hint="name a file that holds the value and nothing else")
    return value


def _check(name: str, setting: Setting) -> None:
    if setting.value is None:
        return
    if name in _WORDS:
        if setting.value not in _WORDS[name]:
            raise ConfigurationError(f"{name} is {setting.value!r} ({setting.source}), which is none of {', '.join(_WORDS[name])}")
        return
    scheme = urlsplit(setting.value).scheme
    if scheme not in _SCHEMES[name]:
        known = ", ".join(f"{scheme}:" for scheme in _SCHEMES[name])
        # Never the value itself: there may be a password in it.
        begins = f"begins with {scheme}:" if scheme else "has no scheme"
        raise ConfigurationError(f"the URL of {name} ({setting.source}) {begins}", hint=f"it begins with one of {known}")
