"""The keys of a lock: side by side, so that one range reads them all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from fencedlock.core.names import checked_name, encoded

_NEEDS_ENCODING = re.compile(r"[%/\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class LockKeys:
    """The keys of one lock, in their order on the server."""

    floor: bytes
    """What :meth:`Client.raise_floor` has raised the tokens by."""
    grant: bytes
    """Exists from a grant to its release: found by the next grant, it says that the hold before was
    abandoned.
    """
    holder: bytes
    """Exists while the lock is held; its ``create_revision`` is the token."""
    left: bytes
    """Written by whoever leaves the queue without the lock: so that it need not be watched who
    comes and goes.
    """
    queue: bytes
    """Begins the key of each place, which tells the waiting claim; the one with the lowest
    ``create_revision`` is the next.
    """
    withdrawn: bytes
    """Begins the key of each claim that is over, but of which a packet may still be under way."""

    @property
    def left_end(self) -> bytes:
        """The end of the range that is watched, which begins with the holder."""
        return self.left + b"\0"

    @property
    def queue_end(self) -> bytes:
        """The end of the range of the queue, and of the one that begins with the holder."""
        return after(self.queue)

    @property
    def holder_end(self) -> bytes:
        """The end of the range that ends with the holder."""
        return self.holder + b"\0"

    def place_of(self, claim_id: str, number: int) -> bytes:
        """The key of a place in the queue: its client's, by :class:`fencedlock.backends.etcd.ticket.Places`."""
        return self.queue + f"{claim_id.partition('/')[0]}/{number}".encode()

    def tombstone_of(self, claim_id: str) -> bytes:
        """The key of a claim that is over."""
        return self.withdrawn + claim_id.encode()


def lock_keys(namespace: str, name: str) -> LockKeys:
    """The keys of this lock.

    Slashes, the percent sign and control characters of the name are percent-encoded.

    Raises ConfigurationError for what can't be a name.
    """
    own = locks_prefix(namespace, checked_name(name)) + b"/"
    return LockKeys(
        own + b"floor",
        own + b"grant",
        own + b"holder",
        own + b"left",
        own + b"queue/",
        own + b"withdrawn/",
    )


def locks_prefix(namespace: str, prefix: str) -> bytes:
    """What the keys of all locks begin with whose names begin with ``prefix``."""
    return f"{namespace}/locks/{encoded(prefix, _NEEDS_ENCODING)}".encode()


def name_of(namespace: str, key: bytes) -> str | None:
    """The name of the lock that is held or waited for by this key; None for its other keys."""
    name, _, kind = key[len(locks_prefix(namespace, "")) :].decode(errors="replace").partition("/")
    return unquote(name) if kind == "holder" or kind.startswith("queue/") else None


def after(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix, whose last byte is below 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
