"""The Lua scripts, and commands packed for the wire."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import Final


def pack(*parts: bytes) -> bytes:
    """One command in Redis' protocol: what redis-py's packer does for any type of argument, at many times the cost."""
    return b"*%d\r\n%b" % (len(parts), bulks(*parts))


class Script:
    """One script of this folder, called by its SHA-1, and by its text where the server has not loaded it."""

    def __init__(self, name: str) -> None:
        self._text = _read(name)
        self._sha = hashlib.sha1(self._text, usedforsecurity=False).hexdigest().encode()
        self.head: bytes = bulks(b"EVALSHA", self._sha)

    def with_text(self, packed: bytes) -> bytes:
        """The same call with the script's text, for a server that answered NOSCRIPT; it loads the script too."""
        count, _, _ = packed.partition(b"\r\n")
        return count + b"\r\n" + bulks(b"EVAL", self._text) + packed[len(count) + 2 + len(self.head) :]


class ScriptCall:
    """One script with the keys of one lock, packed but for its arguments."""

    __slots__ = ("_head", "_parts", "script")

    def __init__(self, script: Script, keys: tuple[bytes, ...]) -> None:
        self.script: Script = script
        self._head = script.head + bulks(b"%d" % len(keys), *keys)
        self._parts = 3 + len(keys)

    def pack(self, *arguments: bytes, fixed: bytes = b"", fixed_count: int = 0) -> bytes:
        """The whole command for the wire. ``fixed`` are further arguments, packed already by :func:`bulks`."""
        return b"*%d\r\n%b%b%b" % (self._parts + len(arguments) + fixed_count, self._head, bulks(*arguments), fixed)


def _read(name: str) -> bytes:
    """The file ``name.lua``, with those that it includes put in their places: what a fast path does not need stands behind it."""
    text = (resources.files(__package__) / "lua" / f"{name}.lua").read_bytes()
    return re.sub(rb"^--@include (\w+)$", lambda match: _read(match[1].decode()), text, flags=re.MULTILINE)


def bulks(*parts: bytes) -> bytes:
    """Arguments as they stand in a command on the wire."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


ACQUIRE: Final = Script("acquire")
RENEW: Final = Script("renew")
RELEASE: Final = Script("release")
WITHDRAW: Final = Script("withdraw")
FORCE_RELEASE: Final = Script("force_release")
INSPECT: Final = Script("inspect")
RAISE_FLOOR: Final = Script("raise_floor")
