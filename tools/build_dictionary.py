"""Builds perdure/security/builtin.zdict: `python tools/build_dictionary.py` writes it, `--check` says whether it is what this builds.

It is trained on conversations that tools/generated_events.py makes up. Nobody's data goes in, so the dictionary gives nobody's data away.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec
from generated_events import generate

from perdure.security.training import train

SEED = 20_260
CONVERSATIONS = 1_500
SIZE_BYTES = 32 * 1024  # larger ones only learn the generator by heart: on real conversations they save no more
PATH = Path(__file__).parent.parent / "perdure" / "security" / "builtin.zdict"


def build() -> bytes:
    """The dictionary's bytes; the same on every machine with the same zstd."""
    return train([msgspec.msgpack.encode(payload) for payload in generate(SEED, CONVERSATIONS)], SIZE_BYTES)


def main() -> int:
    """Write or check the file; the exit code says whether it stands as built."""
    content = build()
    print(len(content), "bytes, SHA-256", hashlib.sha256(content).hexdigest())
    if "--check" in sys.argv[1:]:
        return 0 if PATH.read_bytes() == content else 1
    PATH.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
