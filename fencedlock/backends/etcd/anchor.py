"""What a claim, or its hold, depends on at the server."""

from __future__ import annotations

import itertools

from fencedlock.backends.etcd.leases import Lease
from fencedlock.runtime.threads import make_mutex


class Anchor:
    """The lease of a claim, and the keys that were made for it.

    Kept in :attr:`Claim.anchor` and :attr:`Hold.anchor`.
    """

    __slots__ = (
        "asked_ms",
        "lease",
        "number",
        "place",
        "revision",
        "since",
        "withdrawals",
        "written",
    )

    def __init__(self, lease: Lease, number: int = 0) -> None:
        self.lease: Lease = lease
        self.number: int = number
        """Names the key of its place; 0 while it needs none."""
        self.place: int = 0
        """The ``create_revision`` of its place in the queue; 0 without one."""
        self.revision: int = 0
        """The ``create_revision`` of the holder's key: the token, unless it was raised; 0 until it
        is granted.
        """
        self.asked_ms: int = 0
        """When the lock was last asked for, in ms since 1970: written into the holder's key, for
        people.
        """
        self.since: float = 0.0
        """When the key of the place, or of the hold, was made, at the latest."""
        self.written: int = 0
        """The last operation of the hold that the server has answered."""
        self.withdrawals: int = 0
        """How often the withdrawal of the claim has begun; after Ctrl-C, one may begin while
        another is under way.
        """


class Places:
    """Numbers for the keys of the places that a client takes in queues, used again and again.

    etcd's index keeps a deleted key until it is compacted: with a key for each claim, every look at
    a queue became slower. A number comes back only when all that was sent about it was answered, so
    that no late packet meets another claim's place.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._numbers = itertools.count(1)
        self._mutex = make_mutex()

    def take(self) -> int:
        """A number that is nobody else's."""
        try:
            return self._free.pop()
        except IndexError:
            return next(self._numbers)

    def withdrawn(self, anchor: Anchor) -> int:
        """A withdrawal begins: the number of the place that it has to delete, 0 without one."""
        with self._mutex:
            anchor.withdrawals += 1
            return anchor.number

    def give_back(self, anchor: Anchor, withdrawals: int) -> None:
        """Nothing of the place is left, and nothing about it is under way, unless more withdrawals than these have begun."""
        with self._mutex:
            if anchor.number and anchor.withdrawals == withdrawals:
                number, anchor.number = anchor.number, 0
                self._free.append(number)
