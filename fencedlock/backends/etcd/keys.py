"""The keys of a lock. They are next to each other, so that one range reads them all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from fencedlock.core.names import checked_name, encoded

_NEEDS_ENCODING = re.compile(r"[%/\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class LockKeys:
    """The keys of one lock, in the order in which the server sorts them."""

    floor: bytes
    """Contains the numbers by which :meth:`Client.raise_floor` has raised the tokens."""
    grant: bytes
    """Exists from a grant until its release. If the next grant finds it, the hold before was
    abandoned.
    """
    wanted: bytes
    """Contains the reason for which somebody has asked the holder to release the lock. It depends
    on the lease of the holder, and is between the grant and the holder, because a release deletes
    this range.
    """
    holder: bytes
    """Exists while the lock is held. Its ``create_revision`` is the token, unless the floor was
    raised.
    """
    left: bytes
    """Written by each claim that leaves the queue without the lock. Because of it, the places need
    not be watched.
    """
    queue: bytes
    """The prefix of the keys of the places. The value of such a key names the waiting claim. The
    place with the lowest ``create_revision`` is the next.
    """
    withdrawn: bytes
    """The prefix of the keys of the tombstones. A tombstone marks a claim that is over while one of
    its packets may still be under way.
    """

    @property
    def left_end(self) -> bytes:
        """The end of the range that is watched. The range begins with the holder."""
        return self.left + b"\0"

    @property
    def queue_end(self) -> bytes:
        """The end of the range of the queue, and of the range from the holder to the queue."""
        return after(self.queue)

    @property
    def holder_end(self) -> bytes:
        """The end of the range that ends with the holder."""
        return self.holder + b"\0"

    def place_of(self, claim_id: str, number: int) -> bytes:
        """Return the key of the place in the queue that has this number among those of its client.

        :class:`fencedlock.backends.etcd.ticket.Places` gives out the numbers.
        """
        return self.queue + f"{claim_id.partition('/')[0]}/{number}".encode()

    def tombstone_of(self, claim_id: str) -> bytes:
        """Return the key of the tombstone of a claim."""
        return self.withdrawn + claim_id.encode()


def lock_keys(namespace: str, name: str) -> LockKeys:
    """Return the keys of the lock with this name.

    Slashes, percent signs and control characters in the name are percent-encoded.

    Raises ConfigurationError if the name is invalid.
    """
    own = locks_prefix(namespace, checked_name(name)) + b"/"
    return LockKeys(
        own + b"floor",
        own + b"grant",
        own + b"grant/wanted",
        own + b"holder",
        own + b"left",
        own + b"queue/",
        own + b"withdrawn/",
    )


def locks_prefix(namespace: str, prefix: str) -> bytes:
    """Return the prefix of the keys of all locks whose names begin with ``prefix``."""
    return f"{namespace}/locks/{encoded(prefix, _NEEDS_ENCODING)}".encode()


def name_of(namespace: str, key: bytes) -> str | None:
    """Return the name of the lock whose holder or place this key is; None for its other keys."""
    name, _, kind = key[len(locks_prefix(namespace, "")) :].decode(errors="replace").partition("/")
    return unquote(name) if kind == "holder" or kind.startswith("queue/") else None


def after(prefix: bytes) -> bytes:
    """Return the end of the range of all keys with this prefix.

    The last byte of the prefix must be below 0xff.
    """
    return prefix[:-1] + bytes([prefix[-1] + 1])
