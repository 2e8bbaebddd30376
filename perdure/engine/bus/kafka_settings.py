"""The URL of a Kafka bus, and what it means to the client library.

`kafka://HOST:PORT[,HOST:PORT…]?topic=perdure.events&retention_hours=168&replicas=3&security_protocol=SASL_SSL&ssl_cafile=…`
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from perdure.errors import ConfigurationError, Unavailable
from perdure.limits import MIB

__all__ = ["MESSAGE_BYTES_MAX", "REQUEST_TIMEOUT_S", "KafkaSettings", "no_answer", "parse_url"]

TOPIC_DEFAULT: Final = "perdure.events"
REPLICAS_DEFAULT: Final = 3
RETENTION_HOURS_DEFAULT: Final = 7 * 24
"""The log is the truth; the topic need only outlast a projector that is away, and even then the log fills in."""
MESSAGE_BYTES_MAX: Final = 8 * MIB
"""Set on the topic: the largest event, sealed, with its headers, and room."""
REQUEST_TIMEOUT_S: Final = 5.0
"""How long one request to a broker may take."""

_SECURITY = (
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
)


class KafkaSettings(msgspec.Struct, frozen=True):
    """Where the topic is and how it is made. replicas and retention_hours (-1: for ever) count only when the topic is made here."""

    bootstrap: str
    topic: str = TOPIC_DEFAULT
    replicas: int = REPLICAS_DEFAULT
    retention_hours: int = RETENTION_HOURS_DEFAULT
    security: dict[str, str] = {}

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every client of the library takes."""
        options: dict[str, Any] = {name: value for name, value in self.security.items() if not name.startswith("ssl_")}
        if "SSL" in self.security.get("security_protocol", ""):
            options["ssl_context"] = self._ssl_context()
        return options | {"bootstrap_servers": self.bootstrap.split(","), "request_timeout_ms": int(REQUEST_TIMEOUT_S * 1000)}

    def _ssl_context(self) -> Any:
        from aiokafka.helpers import create_ssl_context

        names = ("cafile", "certfile", "keyfile", "password")
        try:
            return create_ssl_context(**{name: self.security.get(f"ssl_{name}") for name in names})
        except OSError as error:
            raise ConfigurationError(f"the TLS files of the Kafka URL cannot be read: {error}") from error


def parse_url(url: str) -> KafkaSettings:
    """The settings of a kafka:// URL; ConfigurationError says what is wrong with it."""
    parts = urlsplit(url)
    if parts.scheme != "kafka" or not parts.netloc or parts.path.strip("/"):
        raise ConfigurationError("not the URL of a Kafka", hint="kafka://HOST:PORT[,HOST:PORT]?topic=NAME")
    credentials, _, bootstrap = parts.netloc.rpartition("@")
    for address in bootstrap.split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigurationError(f"not the address of a Kafka broker: {address!r}", hint="HOST:PORT")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := query.keys() - {"topic", "replicas", "retention_hours", *_SECURITY}:
        raise ConfigurationError(f"unknown option of a Kafka URL: {min(unknown)}")
    security = {name: query[name] for name in _SECURITY if name in query}
    if credentials:
        user, _, password = credentials.partition(":")
        security |= {"sasl_plain_username": unquote(user), "sasl_plain_password": unquote(password)}
    return KafkaSettings(
        bootstrap=bootstrap,
        topic=query.get("topic") or TOPIC_DEFAULT,
        replicas=_integer(query, "replicas", REPLICAS_DEFAULT, 1),
        retention_hours=_integer(query, "retention_hours", RETENTION_HOURS_DEFAULT, -1),
        security=security,
    )


def no_answer(error: Exception) -> Unavailable:
    """What a broker that does not answer is to a caller. What the library says of a connection names its own types only, so it is left out."""
    from aiokafka.errors import KafkaConnectionError

    what = "no broker can be reached" if isinstance(error, KafkaConnectionError) else str(error) or type(error).__name__
    hint = "is it up, and is the URL of the bus right? A certificate or a password that is refused looks the same: see the log of aiokafka"
    return Unavailable(f"Kafka does not answer: {what}", hint=hint)


def _integer(query: dict[str, str], name: str, default: int, least: int) -> int:
    try:
        value = int(query.get(name, default))
    except ValueError:
        value = least - 1
    if value < least or (name == "retention_hours" and value == 0):
        raise ConfigurationError(f"the option {name} of a Kafka URL is not a number that makes sense: {query[name]!r}")
    return value
