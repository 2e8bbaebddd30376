"""Root keys in HashiCorp Vault's transit engine: they never leave it; it wraps and unwraps what it is sent.

`vault://HOST:PORT/KEY?mount=transit&namespace=…&ca=/path/ca.pem`; the token comes from VAULT_TOKEN, or from the file that VAULT_TOKEN_FILE names,
which is read anew each time, so that it may be renewed there. TLS is verified; `tls=off` is for a server of this machine only.

A wrapped key is bound to its context by a digest that lies beside it under the seal (docs/format/sealed-payload.md): that holds with every release
of the server, and no policy can forget it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import queue
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl

from perdure import limits
from perdure.errors import ConfigurationError, KeyUnavailable, MissingDependency, PerdureError, SealBroken, Unavailable
from perdure.security.framing import join_fields

try:
    import hvac
    import requests
    from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized, VaultError
    from stamina import AsyncRetryingCaller
except ImportError as error:
    raise MissingDependency(f"{error.name} is not installed", hint="pip install 'perdure[vault]'") from error

__all__ = ["FORMAT", "VaultKeyProvider", "open_vault"]

FORMAT: Final = 0x02
"""First byte of a wrapped key."""
_DOMAIN: Final = b"perdure vault wrap"
_DIGEST_BYTES: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CIPHERTEXT: Final = re.compile(r"vault:(v[1-9][0-9]{0,8}):([A-Za-z0-9+/=]+)")
_PARAMETERS: Final = {"mount", "namespace", "ca", "tls"}
_THIS_MACHINE: Final = {"127.0.0.1", "localhost", "::1"}
_HINT: Final = "write vault://HOST:PORT/KEY?mount=transit&namespace=…&ca=/path/ca.pem"

# Where nobody has set up logging, a repetition is no line on the terminal.
logging.getLogger("stamina").addHandler(logging.NullHandler())


class VaultKeyProvider:
    """A named key of the transit engine. See the module, and `KeyProvider`.

    address: https://HOST:PORT. ca: file of the certificates to trust, '' for the system's. environment: where the token is looked for.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        mount: str = "transit",
        namespace: str = "",
        ca: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._address, self._key, self._mount, self._namespace = address, key, mount, namespace
        self._environment = os.environ if environment is None else environment
        self._verify: str | bool = ca or self._environment.get("VAULT_CACERT") or True
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._repeat = AsyncRetryingCaller(
            attempts=limits.KEY_SERVICE_ATTEMPTS_MAX, timeout=limits.KEY_SERVICE_RETRY_S, wait_initial=0.05, wait_max=2.0, wait_jitter=0.1
        )
        self._token()  # a token that is missing is told at once

    @property
    def key_id(self) -> str:
        """The key's name; wrapped keys name its version as well."""
        return self._key

    async def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """See KeyProvider."""
        encoded = base64.b64encode(self._digest(context) + plaintext).decode()
        data = await self._ask(lambda transit: transit.encrypt_data(self._key, plaintext=encoded, mount_point=self._mount))
        ciphertext = str(data.get("ciphertext"))
        found = _CIPHERTEXT.fullmatch(ciphertext)
        if found is None:
            raise Unavailable(f"{self._address} gave no ciphertext", hint="is it a Vault?")
        name = f"{self._key}:{found[1]}".encode()
        return bytes((FORMAT, len(name))) + name + ciphertext.encode()

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See KeyProvider."""
        ciphertext = self._ciphertext(wrapped)
        data = await self._ask(lambda transit: transit.decrypt_data(self._key, ciphertext=ciphertext, mount_point=self._mount))
        try:
            content = base64.b64decode(data.get("plaintext", ""), validate=True)
        except (ValueError, TypeError) as error:
            raise Unavailable(f"{self._address} gave no plaintext", hint="is it a Vault?") from error
        if not hmac.compare_digest(content[:_DIGEST_BYTES], self._digest(context)):
            raise SealBroken("a key wrapped by Vault belongs to another context", key_id=self._key)
        return content[_DIGEST_BYTES:]

    async def add_key(self) -> str:
        """Let Vault make a new version of the key, which wraps from now on; the older ones go on to unwrap."""
        await self._ask(lambda transit: transit.rotate_key(self._key, mount_point=self._mount))
        return self._key

    def _ciphertext(self, wrapped: bytes) -> str:
        if len(wrapped) < 2 or len(wrapped) < 2 + wrapped[1]:
            raise SealBroken("a key wrapped by Vault is cut off")
        name = wrapped[2 : 2 + wrapped[1]].decode("ascii", "replace")
        if wrapped[0] != FORMAT or name.rpartition(":")[0] != self._key:
            hint = "move it here with: perdure keys rotate --root --moved-from URL-OF-THE-OLD-KEYS"
            raise KeyUnavailable(f"the root key {name} is not this key of Vault, {self._key}", hint=hint, key_id=name)
        ciphertext = wrapped[2 + wrapped[1] :].decode("ascii", "replace")
        found = _CIPHERTEXT.fullmatch(ciphertext)
        # The name and the encoding are compared here, because Vault's seal does not cover them.
        if found is None or found[1] != name.rpartition(":")[2] or not _is_canonical(found[2]):
            raise SealBroken("a key wrapped by Vault is damaged", key_id=name)
        return ciphertext

    def _digest(self, context: bytes) -> bytes:
        return hashlib.sha256(join_fields(_DOMAIN, self._key.encode(), context)).digest()

    async def _ask(self, work: Callable[[Any], Any]) -> dict[str, Any]:
        return await self._repeat(Unavailable, asyncio.to_thread, self._ask_once, work)

    def _ask_once(self, work: Callable[[Any], Any]) -> dict[str, Any]:
        """One request, on a connection that nobody else uses meanwhile."""
        try:
            client = self._idle.get_nowait()
        except queue.Empty:
            client = self._connect()
        try:
            client.token = self._token()
            answer = work(client.secrets.transit)
        except (VaultError, requests.RequestException) as error:
            raise self._typed(error) from error
        finally:
            self._idle.put(client)
        if isinstance(answer, dict):
            return answer.get("data") or {}
        if answer.status_code == requests.codes.no_content:
            return {}
        # Also redirects: the token is not carried to another host.
        raise Unavailable(f"{self._address} answers with status {answer.status_code}", hint="name the active server, or a load balancer")

    def _connect(self) -> Any:
        return hvac.Client(
            url=self._address,
            token="",  # set for each request
            verify=self._verify,
            timeout=limits.KEY_SERVICE_TIMEOUT_S,
            allow_redirects=False,
            namespace=self._namespace or None,
        )

    def _token(self) -> str:
        file = self._environment.get("VAULT_TOKEN_FILE")
        try:
            token = Path(file).read_text(encoding="ascii").strip() if file else self._environment.get("VAULT_TOKEN", "").strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the token of Vault cannot be read from {file}") from error
        if not token:
            raise ConfigurationError("there is no token for Vault", hint="set VAULT_TOKEN, or VAULT_TOKEN_FILE to the name of a file")
        return token

    def _typed(self, error: Exception) -> PerdureError:
        said = "; ".join(getattr(error, "errors", None) or []) or type(error).__name__
        if "message authentication failed" in said or "invalid ciphertext" in said:  # some releases say so with status 500
            return SealBroken("a key wrapped by Vault failed its authentication", key_id=self._key)
        if isinstance(error, Forbidden | Unauthorized):
            paths = f"{self._mount}/encrypt/{self._key} and {self._mount}/decrypt/{self._key}"
            hint = f"is the token valid, and may it update {paths}?"
            return KeyUnavailable(f"Vault does not let us use the key {self._key}: {said}", hint=hint, key_id=self._key)
        if isinstance(error, InvalidPath | InvalidRequest):
            hint = f"make it with: vault write -f {self._mount}/keys/{self._key}"
            return KeyUnavailable(f"Vault cannot use the key {self._key}: {said}", hint=hint, key_id=self._key)
        if isinstance(error, requests.exceptions.SSLError):
            hint = "name the file of its certificate authority: ?ca=/path/ca.pem, or VAULT_CACERT"
            return ConfigurationError(f"the certificate of {self._address} cannot be verified", hint=hint)
        return Unavailable(f"Vault at {self._address} does not answer: {said}", hint="is it up, and unsealed?")


def _is_canonical(encoded: str) -> bool:
    """Whether this is base64 in its only right form."""
    try:
        return base64.b64encode(base64.b64decode(encoded, validate=True)).decode() == encoded
    except ValueError:
        return False


def open_vault(parts: SplitResult) -> VaultKeyProvider:
    """The provider that a URL names. Raises ConfigurationError."""
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(given.keys() - _PARAMETERS)
    key, mount = parts.path.removeprefix("/"), given.get("mount", "transit")
    if "@" in parts.netloc or not parts.hostname or unknown or not _NAME.fullmatch(key) or not all(map(_NAME.fullmatch, mount.split("/"))):
        raise ConfigurationError("the URL of the key in Vault is not well formed, or holds what belongs into the environment", hint=_HINT)
    tls = given.get("tls", "on")
    if tls not in {"on", "off"} or (tls == "off" and parts.hostname not in _THIS_MACHINE):
        raise ConfigurationError(f"Vault at {parts.hostname} is reached with TLS", hint="tls=off is for a server of this machine")
    scheme = "https" if tls == "on" else "http"
    return VaultKeyProvider(f"{scheme}://{parts.netloc}", key, mount=mount, namespace=given.get("namespace", ""), ca=given.get("ca", ""))
