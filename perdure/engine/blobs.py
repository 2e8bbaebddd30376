"""Large values by reference: content-addressed, deduplicated within a tenant, read back without anybody noticing.

A value above the inline limit is stored once under a name that its content and the tenant's key give, and a reference of 40 bytes stands in the
event. The blob is durable before the event that names it is appended; one that no event came to name is harmless.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from perdure import limits
from perdure.errors import LimitExceeded

__all__ = ["EXTENSION", "Reference", "put_back", "take_out"]

EXTENSION: Final = 1
"""The msgpack extension type of a reference."""
_SIZE = struct.Struct(">Q")
_NAME_BYTES: Final = 32

encode = msgspec.msgpack.Encoder().encode


class Reference(msgspec.Struct, frozen=True):
    """Where a value is kept. name: 32 bytes. size_bytes: of the value as msgpack."""

    name: bytes
    size_bytes: int

    def to_extension(self) -> msgspec.msgpack.Ext:
        """The form in which it stands in a payload."""
        return msgspec.msgpack.Ext(EXTENSION, self.name + _SIZE.pack(self.size_bytes))

    @classmethod
    def from_extension(cls, data: bytes) -> Reference:
        """Raises ValueError when the bytes are not a reference."""
        if len(data) != _NAME_BYTES + _SIZE.size:
            raise ValueError(f"a reference has {_NAME_BYTES + _SIZE.size} bytes, not {len(data)}")
        return cls(data[:_NAME_BYTES], _SIZE.unpack(data[_NAME_BYTES:])[0])


def take_out(value: Any, keep: Callable[[bytes], bytes]) -> tuple[Any, int]:
    """The value with what is large in it replaced by references, and how many there are.

    keep(encoded) -> name: takes a large value as msgpack. The smallest parts that are large by themselves go out; a container that is large
    for the number of its small parts goes out whole. Raises LimitExceeded.
    """
    size = len(encode(value))
    if size <= limits.INLINE_BYTES_MAX:
        return value, 0
    count = 0
    if isinstance(value, dict):
        changed: dict[str, Any] = {}
        for key, child in value.items():
            changed[key], taken = take_out(child, keep)
            count += taken
        value = changed
    elif isinstance(value, list | tuple):
        parts = [take_out(child, keep) for child in value]
        value, count = [part for part, _ in parts], sum(taken for _, taken in parts)
    encoded = encode(value)
    if len(encoded) <= limits.INLINE_BYTES_MAX:
        return value, count
    if len(encoded) > limits.BLOB_BYTES_MAX:
        raise LimitExceeded(f"a value has {len(encoded)} bytes, the limit is {limits.BLOB_BYTES_MAX}")
    return Reference(keep(encoded), len(encoded)).to_extension(), count + 1


async def put_back(value: Any, fetch: Callable[[Reference], Awaitable[bytes]]) -> Any:
    """The value with its references replaced by what they name. fetch(reference) -> the value as msgpack."""
    if isinstance(value, msgspec.msgpack.Ext):
        reference = Reference.from_extension(bytes(value.data))
        return await put_back(msgspec.msgpack.decode(await fetch(reference)), fetch)
    if type(value) is dict:
        return {key: await put_back(child, fetch) for key, child in value.items()}
    if type(value) is list:
        return [await put_back(child, fetch) for child in value]
    return value
