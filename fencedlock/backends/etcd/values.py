"""What stands in a lock's keys: words for people and programs, apart by spaces."""

from __future__ import annotations

from typing import Any, NamedTuple

from fencedlock.backends.etcd.floors import Floors
from fencedlock.backends.etcd.keys import LockKeys
from fencedlock.errors import BackendError


class Holder(NamedTuple):
    """What the holder's key tells."""

    claim_id: str
    depth: int
    holder: str
    """Host, process and native thread id."""
    since_ms: int
    """When the hold began, in ms since 1970, by the holder's clock."""


def holder_value(operation: int, claim_id: str, depth: int, holder: str, since_ms: int) -> bytes:
    """The value of the holder's key.

    The number of the operation comes first, in ten digits, so that a later value is a greater one.
    """
    return f"{operation:010d} {claim_id} {depth} {holder} {since_ms}".encode()


def read_holder(value: bytes) -> Holder:
    """Read it. Raises BackendError for what is none."""
    try:
        _, claim_id, depth, rest = value.decode().split(" ", 3)
        holder, _, since_ms = rest.rpartition(" ")
        return Holder(claim_id, int(depth), holder, int(since_ms))
    except ValueError as error:
        raise BackendError(
            f"what stands at the lock's key makes no sense: {value!r:.200}"
        ) from error


def claim_of_holder(value: bytes) -> str:
    """The claim that holds, "" if that can't be told."""
    words = value.split(b" ", 2)
    return words[1].decode(errors="replace") if len(words) == 3 else ""


def place_value(claim_id: str, holder: str) -> bytes:
    """The value of a place in the queue."""
    return f"{claim_id} {holder}".encode()


def read_place(value: bytes) -> tuple[str, str]:
    """Read it: the claim, and its host, process and native thread id.

    What makes no sense is read as well as it can be.
    """
    claim_id, _, holder = value.decode(errors="replace").partition(" ")
    return claim_id, holder


def claims_in(kvs: Any, keys: LockKeys) -> list[str]:
    """The ids of the claims whose places are among these, in that order."""
    return [read_place(kv.value)[0] for kv in kvs if kv.key.startswith(keys.queue)]


def first_values_of(claim_id: str) -> tuple[bytes, bytes]:
    """Two values between which those of this claim's first operation are."""
    return b"%010d %b " % (0, claim_id.encode()), b"%010d %b!" % (0, claim_id.encode())


class LockState:
    """The keys of a lock besides its queue, where they exist."""

    __slots__ = ("floors", "grant", "holder")

    def __init__(self, kvs: Any, keys: LockKeys) -> None:
        found = {kv.key: kv for kv in kvs}
        self.grant: Any = found.get(keys.grant)
        self.holder: Any = found.get(keys.holder)
        self.floors: Floors = Floors.read(found.get(keys.floor))
