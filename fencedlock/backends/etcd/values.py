"""The values of a lock's keys. They are words, separated by spaces, for people and programs."""

from __future__ import annotations

from typing import Any, NamedTuple

from fencedlock.backends.etcd.floors import FloorHistory
from fencedlock.backends.etcd.keys import LockKeys
from fencedlock.errors import BackendError


class Holder(NamedTuple):
    """The parts of the value of the holder's key."""

    operation: int
    digest: str
    """The digest of the secret with which the hold was detached. Empty if it is not detached."""
    claim_id: str
    depth: int
    holder: str
    """The host, process and native thread id of the holder."""
    since_ms: int
    """The time at which the hold began, in ms since 1970, by the holder's clock."""

    def is_held_by(self, claim_id: str) -> bool:
        """Return True if this claim has the hold, and it is not detached."""
        return self.claim_id == claim_id and not self.digest


KEPT_OPERATION = 9_999_999_999
"""The number in place of that of an operation after a hold that has ended, while its lock is kept
closed. No operation of the hold that comes late is greater.
"""


_DETACHED = "detached:"


def detached_owner(digest: str, claim_id: str) -> str:
    """Return what is in the place of the claim id while its hold is detached."""
    return f"{_DETACHED}{digest}:{claim_id}"


def holder_value(operation: int, claim_id: str, depth: int, holder: str, since_ms: int) -> bytes:
    """Return the value of the holder's key.

    It begins with the number of the operation in ten digits, so that the value of a later operation
    compares as greater.
    """
    return f"{operation:010d} {claim_id} {depth} {holder} {since_ms}".encode()


def read_holder(value: bytes) -> Holder:
    """Return the parts of the value of a holder's key. Raises BackendError if it is not one."""
    try:
        operation, owner, depth, rest = value.decode().split(" ", 3)
        digest, _, claim_id = owner.removeprefix(_DETACHED).rpartition(":")
        holder, _, since_ms = rest.rpartition(" ")
        return Holder(int(operation), digest, claim_id, int(depth), holder, int(since_ms))
    except ValueError as error:
        raise BackendError(
            f"the value of the lock's key is not that of a holder: {value!r:.200}"
        ) from error


def claim_of_holder(value: bytes) -> str:
    """Return the id of the claim in the value of a holder's key, or "" if there is none."""
    words = value.split(b" ", 2)
    return words[1].decode(errors="replace") if len(words) == 3 else ""


def place_value(claim_id: str, holder: str) -> bytes:
    """Return the value of the key of a place in the queue."""
    return f"{claim_id} {holder}".encode()


def read_place(value: bytes) -> tuple[str, str]:
    """Return the id of the claim in a place's value, and its host, process and native thread id.

    A malformed value raises no error. It is read as far as possible.
    """
    claim_id, _, holder = value.decode(errors="replace").partition(" ")
    return claim_id, holder


def claims_in(kvs: Any, keys: LockKeys) -> list[str]:
    """Return the ids of the claims whose places are among these keys, in the order of the keys."""
    return [read_place(kv.value)[0] for kv in kvs if kv.key.startswith(keys.queue)]


def first_values_of(claim_id: str) -> tuple[bytes, bytes]:
    """Return two values that enclose all values of this claim's first operation.

    They compare as lower and as greater than each of these.
    """
    return b"%010d %b " % (0, claim_id.encode()), b"%010d %b!" % (0, claim_id.encode())


def wanted_value(revision: int, reason: str) -> bytes:
    """Return the value of the key of a request for the lock.

    ``revision`` is the ``create_revision`` of the key of the holder that is asked.
    """
    return f"{revision} {reason}".encode()


def read_wanted(kv: Any, revision: int) -> str | None:
    """Return the reason of a request, if it is to the holder with this ``create_revision``."""
    asked, _, reason = kv.value.decode(errors="replace").partition(" ")
    return str(reason) if asked == str(revision) else None


class LockState:
    """The grant, the holder and the floors of a lock, from the keys that were read."""

    __slots__ = ("floors", "grant", "holder", "wanted")

    def __init__(self, kvs: Any, keys: LockKeys) -> None:
        found = {kv.key: kv for kv in kvs}
        self.grant: Any = found.get(keys.grant)
        self.holder: Any = found.get(keys.holder)
        wanted = found.get(keys.wanted)
        self.wanted: str | None = (
            None
            if wanted is None or self.holder is None
            else read_wanted(wanted, self.holder.create_revision)
        )
        self.floors: FloorHistory = FloorHistory.read(found.get(keys.floor))
