"""A server that speaks the HTTP API of Vault's transit engine, with real AES-256-GCM, as a process of its own.

It keeps what the engine's callers rely on: versions of keys, `min_decryption_version`, tokens and what they may do, a seal, and the status codes and
words of its errors, among them the 500 with which some releases answer a failed authentication. Keys live in memory.

    python -m tests.vault_server TOKEN [CERTIFICATE KEY]        prints {"port": …}
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
PATH = re.compile(r"/v1/(?P<mount>[\w-]+)/(?P<action>keys|encrypt|decrypt)/(?P<name>[\w.-]+)(?:/(?P<sub>rotate|config))?")


class Refused(Exception):
    """status, message: of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Key:
    """A named key: its versions, from 1 on."""

    def __init__(self) -> None:
        self.versions = [os.urandom(32)]
        self.min_decryption_version = 1

    def encrypt(self, plaintext: bytes) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(self.versions[-1]).encrypt(nonce, plaintext, None)
        return f"vault:v{len(self.versions)}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, ciphertext: str) -> bytes:
        parts = ciphertext.split(":")
        if len(parts) != 3 or parts[0] != "vault" or not re.fullmatch(r"v\d+", parts[1]):
            raise Refused(400, "invalid ciphertext: no prefix")
        version = int(parts[1][1:])
        if not 1 <= version <= len(self.versions):
            raise Refused(400, "invalid ciphertext: version is too new")
        if version < self.min_decryption_version:
            raise Refused(400, "ciphertext or signature version is disallowed by policy (too old)")
        try:
            sealed = base64.b64decode(parts[2], validate=True)
        except ValueError:
            raise Refused(400, "invalid ciphertext: could not decode base64") from None
        if len(sealed) < NONCE_BYTES:
            raise Refused(400, "invalid ciphertext length")
        try:
            return AESGCM(self.versions[version - 1]).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except InvalidTag:
            raise Refused(500, "cipher: message authentication failed") from None


class Vault:
    """What the server holds. busy: so many requests are answered with 503 before the next is served."""

    def __init__(self, token: str) -> None:
        self.lock = threading.Lock()
        self.root_token = token
        self.token = token
        self.keys: dict[tuple[str, str], Key] = {}
        self.sealed = False
        self.busy = 0
        self.requests = 0

    def control(self, body: dict[str, object]) -> dict[str, object]:
        """For the test alone: change how the server answers."""
        for name, value in body.items():
            setattr(self, name, value)
        return {"requests": self.requests}

    def serve(self, method: str, path: str, token: str | None, body: dict[str, object]) -> dict[str, object] | None:
        if path == "/test-control":
            return self.control(body)
        self.requests += 1
        if self.sealed:
            raise Refused(503, "Vault is sealed")
        if self.busy:
            self.busy -= 1
            raise Refused(503, "local node not active but active cluster node not found")
        if token != self.token:
            raise Refused(403, "permission denied")
        found = PATH.fullmatch(path)
        if found is None:
            raise Refused(404, f'no handler for route "{path}"')
        place = (found["mount"], found["name"])
        if found["action"] == "keys":
            return self._manage(place, method, found["sub"], body)
        key = self.keys.get(place)
        if key is None:
            raise Refused(400, "encryption key not found")
        if found["action"] == "encrypt":
            return {"data": {"ciphertext": key.encrypt(base64.b64decode(str(body["plaintext"])))}}
        return {"data": {"plaintext": base64.b64encode(key.decrypt(str(body["ciphertext"]))).decode()}}

    def _manage(self, place: tuple[str, str], method: str, sub: str | None, body: dict[str, object]) -> dict[str, object] | None:
        if sub is None and method in {"POST", "PUT"}:
            self.keys.setdefault(place, Key())
            return None
        if sub is None and method == "DELETE":
            del self.keys[place]
            return None
        key = self.keys.get(place)
        if key is None:
            raise Refused(400, "encryption key not found")
        if sub == "rotate":
            key.versions.append(os.urandom(32))
        elif sub == "config":
            key.min_decryption_version = int(str(body["min_decryption_version"]))
        return None if sub else {"data": {"latest_version": len(key.versions), "name": place[1], "type": "aes256-gcm96"}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    vault: Vault

    def answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        try:
            with self.vault.lock:
                found = self.vault.serve(self.command, self.path, self.headers.get("x-vault-token"), body)
            status, content = (204, b"") if found is None else (200, json.dumps(found).encode())
        except Refused as refused:
            status, content = refused.status, json.dumps({"errors": [refused.message]}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Quiet."""


def main() -> None:
    token, *certificate = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("VaultHandler", (Handler,), {"vault": Vault(token)}))
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(json.dumps({"port": server.server_port}), flush=True)
    # Ends with whoever started it, also when that was killed.
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
