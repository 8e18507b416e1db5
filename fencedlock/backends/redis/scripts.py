"""The Lua scripts, and commands packed for the wire."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Final


def pack(*parts: str) -> bytes:
    """One command in Redis' protocol: what redis-py's packer does for any type of argument, at many times the cost."""
    return f"*{len(parts)}\r\n{bulks(*parts)}".encode()


class Script:
    """One script of this folder, called by its SHA-1, and by its text where the server has not loaded it."""

    def __init__(self, name: str, arguments: int, constants: Mapping[str, int]) -> None:
        self.text: str = re.sub(r"@(\w+)@", lambda match: str(constants[match[1]]), _read(name))
        self._arguments = arguments
        self.prepare()

    def prepare(self) -> None:
        """Prepare the calls of the present text."""
        sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.head: str = f"*{3 + KEYS + self._arguments}\r\n{bulks('EVALSHA', sha, str(KEYS))}"
        """What a call begins with; the keys of a lock and the arguments follow. It is text, for
        text is put together faster than bytes.
        """

    def pack(self, keys: str, *arguments: str) -> bytes:
        """The call for a lock with these keys, which are packed already."""
        return f"{self.head}{keys}{bulks(*arguments)}".encode()

    def with_text(self, packed: bytes) -> bytes:
        """The same call with the script's text, for a server that answered NOSCRIPT; it loads the script too."""
        count, _, _ = self.head.partition("\r\n")
        return (
            f"{count}\r\n{bulks('EVAL', self.text, str(KEYS))}".encode() + packed[len(self.head) :]
        )


def _read(name: str) -> str:
    """The file ``name.lua``, with those that it includes put in their places: what a fast path does not need stands behind it."""
    text = (resources.files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return re.sub(r"^--@include (\w+)$", lambda match: _read(match[1]), text, flags=re.MULTILINE)


def bulks(*parts: str) -> str:
    """Arguments as they stand in a command on the wire: each with its length in bytes."""
    return "".join([f"${len(part.encode())}\r\n{part}\r\n" for part in parts])


KEYS: Final = 5
"""The keys of a lock: see lua/keys.lua."""

TOKEN_MEMORY_SECONDS: Final = 7 * 86400.0
"""The server remembers a lock's last token at least so long after its last use, unless a client is
told otherwise.
"""


class Scripts:
    """The scripts of a client whose locks' last tokens are remembered at least so long."""

    def __init__(self, token_memory_seconds: float) -> None:
        period_us = math.ceil(token_memory_seconds / 7 * 1e6)  # see lua/keys.lua
        constants = {"period_us": period_us, "fence_ttl_ms": math.ceil(8 * period_us / 1000)}
        self.acquire: Script = Script("acquire", 7, constants)
        self.renew: Script = Script("renew", 6, constants)
        self.release: Script = Script("release", 4, constants)
        self.withdraw: Script = Script("withdraw", 3, constants)
        self.force_release: Script = Script("force_release", 2, constants)
        self.inspect: Script = Script("inspect", 0, constants)
        self.raise_floor: Script = Script("raise_floor", 1, constants)


@lru_cache(maxsize=32)
def scripts_of(token_memory_seconds: float = TOKEN_MEMORY_SECONDS) -> Scripts:
    """The same for all clients of this process with one setting."""
    return Scripts(token_memory_seconds)
