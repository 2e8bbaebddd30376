"""The keys of one agent's snapshots, and the names of what they stand in.

A chunk's key follows from its content and the tenant's key, and everything else of the chunk follows from that key::

    digest = SHA-256(content)                                           listed in the sealed manifest, nowhere else
    key    = HMAC(tenant's chunk secret, codec | dictionary | digest)
    name   = HMAC(key, "name")      AES key, nonce key = the halves of HMAC-SHA-512(key, "seal")      nonce = HMAC(nonce key, compressed content)

So equal chunks of a tenant are one object, chunks of two tenants never are, and when an agent's data key is destroyed, and with it every manifest
of the agent, nobody can open a chunk that no other agent's manifest lists: not even the tenant's key does it without the digest.
"""

from __future__ import annotations

import hmac
from typing import Final

from perdure.security.cipher import Cipher
from perdure.security.framing import join_fields
from perdure.security.tenant_key import TenantKey

__all__ = ["CHUNK_KEY_BYTES", "MARK_BYTES", "SnapshotKeys", "chunk_name", "chunk_object", "chunk_secrets", "manifest_object", "tenant_mark"]

CHUNK_KEY_BYTES: Final = 32
MARK_BYTES: Final = 16
"""Of a mark, before it is written as hexadecimal digits."""
_NONCE_BYTES: Final = 12


class SnapshotKeys:
    """What packing and unpacking an agent's snapshots needs. tenant_key: names and keys of chunks. cipher: the agent's, seals manifests."""

    __slots__ = ("_tenant_key", "agent", "agent_mark", "cipher", "tenant", "tenant_mark")

    def __init__(self, tenant_key: TenantKey, cipher: Cipher) -> None:
        if tenant_key.tenant != cipher.tenant:
            raise ValueError(f"a key of tenant {tenant_key.tenant!r} and a cipher of tenant {cipher.tenant!r}")
        self.tenant = cipher.tenant
        self.agent = cipher.agent
        self.cipher = cipher
        self._tenant_key = tenant_key
        self.tenant_mark = tenant_mark(tenant_key)
        self.agent_mark = tenant_key.mark(join_fields(b"snapshots of agent", self.agent.encode()))[:MARK_BYTES].hex()

    @property
    def version(self) -> int:
        """Of the tenant's key, for new chunks."""
        return self._tenant_key.version

    def chunk_key(self, version: int, codec: int, dictionary: int, digest: bytes) -> bytes:
        """The key of a chunk, 32 bytes. version: of the tenant's key. codec, dictionary: asked for. digest: of its content. Raises KeyUnavailable."""
        return self._tenant_key.chunk_key(version, bytes((codec,)) + dictionary.to_bytes(4, "big") + digest)

    def chunk_object(self, name: bytes) -> str:
        """Where the tenant's chunk of this name is stored."""
        return chunk_object(self.tenant_mark, name)

    def manifest_object(self, version: int, sha256: bytes) -> str:
        """Where the agent's manifest at a version is stored. sha256: of the sealed manifest."""
        return manifest_object(self.tenant_mark, self.agent_mark, version, sha256)


def chunk_name(key: bytes) -> bytes:
    """The name of the chunk that a key opens, 32 bytes; it tells nothing of the key."""
    return hmac.digest(key, b"name", "sha256")


def chunk_secrets(key: bytes, content: bytes) -> tuple[bytes, bytes]:
    """(AES key, nonce) for the compressed content of the chunk of this key.

    One chunk key may seal different bytes, because another release of a codec may compress in another way; the nonce follows the bytes, so it is
    never used for two of them, and equal ones are sealed equally.
    """
    aes_key, nonce_key = _seal_keys(key)
    return aes_key, hmac.digest(nonce_key, content, "sha256")[:_NONCE_BYTES]


def cipher_key(key: bytes) -> bytes:
    """The AES key of a chunk."""
    return _seal_keys(key)[0]


def _seal_keys(key: bytes) -> tuple[bytes, bytes]:
    both = hmac.digest(key, b"seal", "sha512")
    return both[:CHUNK_KEY_BYTES], both[CHUNK_KEY_BYTES:]


def tenant_mark(tenant_key: TenantKey) -> str:
    """What a store sees in place of the tenant's name."""
    return tenant_key.mark(join_fields(b"snapshots of tenant"))[:MARK_BYTES].hex()


def chunk_object(tenant_mark: str, name: bytes) -> str:
    """Where a chunk is stored: `chunks/<tenant mark>/<2 hex>/<64 hex>`."""
    text = name.hex()
    return f"chunks/{tenant_mark}/{text[:2]}/{text}"


def manifest_object(tenant_mark: str, agent_mark: str, version: int, sha256: bytes) -> str:
    """Where a manifest is stored: `manifests/<tenant mark>/<agent mark>/<version, 20 digits>-<first 16 hex of its SHA-256>`."""
    return f"manifests/{tenant_mark}/{agent_mark}/{version:020d}-{sha256.hex()[:16]}"
