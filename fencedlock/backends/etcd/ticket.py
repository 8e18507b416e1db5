"""What the backend remembers of one claim and of its hold."""

from __future__ import annotations

import itertools

from fencedlock.backends.etcd.leases import Lease
from fencedlock.core.claims import Claim, Hold
from fencedlock.runtime.interrupts import make_mutex


class EtcdTicket:
    """The lease that a claim, or its hold, depends on, and the keys that were made for it."""

    __slots__ = (
        "asked_ms",
        "before",
        "kept",
        "maybe_lease",
        "number",
        "place",
        "revision",
        "since",
        "unanswered",
        "withdrawals",
        "written",
    )

    def __init__(self) -> None:
        self.maybe_lease: Lease | None = None
        """None before the first request."""
        self.kept: Lease | None = None
        """The lease that keeps the lock closed after a release, None if there is none."""
        self.unanswered: bool = False
        """True if a request that may grant the claim had no answer, and may still be executed."""
        self.number: int = 0
        """Names the key of its place in the queue. 0 while it needs none."""
        self.place: int = 0
        """The ``create_revision`` of its place in the queue. 0 without one."""
        self.revision: int = 0
        """The ``create_revision`` of the holder's key, 0 until the claim is granted.

        It is the token, unless that was raised.
        """
        self.asked_ms: int = 0
        """The time of the last request for the lock, in ms since 1970.

        It is written into the holder's key, for people.
        """
        self.since: float = 0.0
        """A local time that is not earlier than the creation of the key of the place or hold."""
        self.before: int = 0
        """The number of the last operation before this claim has attached a detached hold."""
        self.written: int = 0
        """The last operation of the hold that the server has answered."""
        self.withdrawals: int = 0
        """How many withdrawals of the claim have begun.

        After Ctrl-C, one may begin while another one is under way.
        """

    @property
    def lease(self) -> Lease:
        """The lease that the keys are tied to. There is one from the first request on."""
        assert self.maybe_lease is not None
        return self.maybe_lease

    def tie(self, lease: Lease) -> None:
        """Depend on this lease from now on. Keys that were tied to the lease before are gone."""
        self.maybe_lease = lease
        self.place, self.revision, self.since, self.written = 0, 0, 0.0, 0


def ticket_of(target: Claim | Hold) -> EtcdTicket:
    """Return the ticket of a claim, or of the claim of a hold."""
    ticket: EtcdTicket = (target.claim if isinstance(target, Hold) else target).ticket
    return ticket


class Places:
    """Numbers for the keys of the places that a client takes in queues. They are used repeatedly.

    etcd's index keeps a deleted key until it is compacted, so a new key for each claim would make
    every look at a queue slower. A number becomes available again only when all requests about it
    were answered, so that no late packet meets the place of another claim.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._numbers = itertools.count(1)
        self._mutex = make_mutex()

    def take(self) -> int:
        """Return a number that no other claim uses."""
        try:
            return self._free.pop()
        except IndexError:
            return next(self._numbers)

    def withdrawn(self, ticket: EtcdTicket) -> int:
        """Record that a withdrawal begins, and return the number of the place that it deletes.

        The number is 0 if there is no place.
        """
        with self._mutex:
            ticket.withdrawals += 1
            return ticket.number

    def give_back(self, ticket: EtcdTicket, withdrawals: int) -> None:
        """Make the number available again, unless more withdrawals than these have begun.

        The caller knows that nothing of the place is left, and that no request about it is under
        way.
        """
        with self._mutex:
            if ticket.number and ticket.withdrawals == withdrawals:
                number, ticket.number = ticket.number, 0
                self._free.append(number)
