"""Loads the Lua scripts, and packs commands for the wire."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Final


def pack(*parts: str) -> bytes:
    """Return one command in the format of Redis' protocol.

    redis-py's packer, which takes arguments of any type, costs many times as much.
    """
    return f"*{len(parts)}\r\n{bulks(*parts)}".encode()


class Script:
    """One script of the folder ``lua``.

    It is called by its SHA-1, or by its text if the server has not loaded it.
    """

    def __init__(self, name: str, arguments: int, constants: Mapping[str, int]) -> None:
        self.text: str = re.sub(r"@(\w+)@", lambda match: str(constants[match[1]]), _read(name))
        self._arguments = arguments
        self.prepare()

    def prepare(self) -> None:
        """Compute :attr:`head` for the present text."""
        sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.head: str = f"*{3 + KEYS + self._arguments}\r\n{bulks('EVALSHA', sha, str(KEYS))}"
        """The beginning of a call, which the keys of a lock and the arguments follow. It is text,
        because text is joined faster than bytes.
        """

    def pack(self, keys: str, *arguments: str) -> bytes:
        """Return the call for a lock with these keys, which are packed already."""
        return f"{self.head}{keys}{bulks(*arguments)}".encode()

    def with_text(self, packed: bytes) -> bytes:
        """Return the same call with the script's text, for a server that answered NOSCRIPT.

        The server also loads the script then.
        """
        count, _, _ = self.head.partition("\r\n")
        return (
            f"{count}\r\n{bulks('EVAL', self.text, str(KEYS))}".encode() + packed[len(self.head) :]
        )


def _read(name: str) -> str:
    """Return the text of ``name.lua``, with the text of other files in place of their includes.

    What a fast path does not need is included after it.
    """
    text = (resources.files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return re.sub(r"^--@include (\w+)$", lambda match: _read(match[1]), text, flags=re.MULTILINE)


def whole_ms(lease_seconds: float) -> int:
    """Return a lease in ms, as the server is asked for it.

    It is rounded up, because it must not end there before it ends here.
    """
    return math.ceil(lease_seconds * 1000)


def bulks(*parts: str) -> str:
    """Return arguments in the format of the wire, each with its length in bytes."""
    return "".join([f"${len(part.encode())}\r\n{part}\r\n" for part in parts])


KEYS: Final = 5
"""The number of keys of a lock. See lua/keys.lua."""

TOKEN_MEMORY_SECONDS: Final = 7 * 86400.0
"""The least time for which the server remembers a lock's last token after its last use, unless a
client has another setting.
"""


class Scripts:
    """The scripts of clients with the same ``token_memory_seconds``.

    This is the least time for which the server remembers a lock's last token.
    """

    def __init__(self, token_memory_seconds: float) -> None:
        period_us = math.ceil(token_memory_seconds / 7 * 1e6)  # see lua/keys.lua
        constants = {"period_us": period_us, "fence_ttl_ms": math.ceil(8 * period_us / 1000)}
        self.acquire: Script = Script("acquire", 7, constants)
        self.renew: Script = Script("renew", 6, constants)
        self.release: Script = Script("release", 4, constants)
        self.keep: Script = Script("keep", 5, constants)
        self.detach: Script = Script("detach", 6, constants)
        self.attach: Script = Script("attach", 6, constants)
        self.withdraw: Script = Script("withdraw", 3, constants)
        self.force_release: Script = Script("force_release", 2, constants)
        self.request_release: Script = Script("request_release", 2, constants)
        self.inspect: Script = Script("inspect", 0, constants)
        self.raise_floor: Script = Script("raise_floor", 1, constants)


@lru_cache(maxsize=32)
def scripts_of(token_memory_seconds: float = TOKEN_MEMORY_SECONDS) -> Scripts:
    """Return the scripts for this setting. All clients of this process with it share them."""
    return Scripts(token_memory_seconds)
