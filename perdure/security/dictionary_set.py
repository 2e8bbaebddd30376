"""The dictionaries that one tenant's ciphers share: the built-in one, and the tenant's own as they are loaded."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from perdure.errors import ConfigurationError
from perdure.security.compression import Dictionary

__all__ = ["BUILTIN", "BUILTIN_ID", "BUILTIN_SHA256", "DICTIONARY_IDS", "TENANT_ID_FIRST", "DictionarySet"]

BUILTIN_ID: Final = 1
TENANT_ID_FIRST: Final = 16
"""Ids 1 … 15 are for dictionaries that ship with the package, now and later."""
DICTIONARY_IDS: Final = 1 << 21
"""Ids are below this: it is what three bytes of a header hold."""
BUILTIN_SHA256: Final = "baf4a4dfffde097abae878725d2a24220208e032343fa1acd20407c806052b84"
"""Of builtin.zdict; a changed dictionary needs a new id, because everything sealed with the old one still needs the old one."""


class DictionarySet:
    """Dictionaries by id. Grows in place, so that ciphers that live longer see what was loaded or trained since."""

    __slots__ = ("__weakref__", "_by_id", "_newest")

    def __init__(self) -> None:
        self._by_id: dict[int, Dictionary] = {}
        self._newest: Dictionary | None = None

    @property
    def newest(self) -> Dictionary:
        """The one for new seals: the tenant's newest, or the built-in one."""
        return self._newest or _builtin()

    @property
    def ids(self) -> list[int]:
        """The ids of the tenant's own dictionaries that are loaded, ascending."""
        return sorted(self._by_id)

    def find(self, id: int) -> Dictionary | None:
        """The one with this id, or None where it is not loaded."""
        return _builtin() if id == BUILTIN_ID else self._by_id.get(id)

    def learn(self, dictionary: Dictionary) -> None:
        """Take in one of the tenant's dictionaries; the highest id is the newest."""
        self._by_id[dictionary.id] = dictionary
        self._newest = self._by_id[max(self._by_id)]


@cache
def _builtin() -> Dictionary:
    content = files("perdure.security").joinpath("builtin.zdict").read_bytes()
    if hashlib.sha256(content).hexdigest() != BUILTIN_SHA256:
        raise ConfigurationError("the built-in dictionary is damaged", hint="install the package again")
    return Dictionary(BUILTIN_ID, content)


BUILTIN: Final = DictionarySet()
"""Only the built-in dictionary; nothing is ever added."""
