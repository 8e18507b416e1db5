"""The leases of a client on the server.

There is one for each length in use. The beats of the claims and holds that depend on a lease keep
it alive.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from fencedlock.backends.etcd.connections import (
    LEASE_GRANT,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    Connections,
    LeaseGoneError,
    alone,
)
from fencedlock.backends.etcd.keys import locks_prefix
from fencedlock.backends.etcd.messages import messages
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendError, BackendUnavailableError
from fencedlock.runtime.interrupts import make_mutex

logger: logging.Logger = logging.getLogger("fencedlock")

_Result = TypeVar("_Result")

LEAST_SHARE = 2 / 3
"""The least share of its lease that a grant has before it."""

END_SECONDS = 0.25
"""The interval at which the server is asked to end a lease that is over here, and the time that it
has to answer.
"""

FRESH_SHARE = 1 / 6
"""The share of the lease after a renewal in which further beats send nothing. They would renew the
same lease, because all locks share it.
"""


class Lease:
    """One lease on the server."""

    __slots__ = ("asked_at", "checked_at", "deadline", "gone", "id", "keys", "length", "seconds")

    def __init__(self, lease_id: int, length: int, seconds: int, asked_at: float) -> None:
        self.id: int = lease_id
        self.length: int = length
        """The length in seconds that was asked for."""
        self.seconds: int = seconds
        """The length that the server granted, which may be more than was asked for."""
        self.asked_at: float = asked_at
        """The local time from which the present term counts. On the server, it began then or later.
        """
        self.deadline: float = asked_at + seconds
        """The local time at which the lease ends."""
        self.gone: bool = False
        """True after the lease has ended, by our clock or on the server."""
        self.keys: frozenset[bytes] = frozenset()
        """The keys that depended on the lease at ``checked_at``, or a little earlier."""
        self.checked_at: float = 0.0

    def is_fresh(self, now: float) -> bool:
        """Return True if the lease was renewed so recently that another beat is not needed."""
        return not self.gone and now < self.asked_at + self.seconds * FRESH_SHARE

    def is_good(self, now: float) -> bool:
        """Return True if enough of the lease is left for a grant."""
        return not self.gone and now < self.deadline - self.seconds * LEAST_SHARE


class Leases:
    """The leases that one client uses.

    The client has a lease of its own for each length in use. In addition, all clients of a
    namespace share leases for keys that have to outlive the clients.
    """

    def __init__(self, connections: Connections, namespace: str) -> None:
        self._connections = connections
        self._namespace = namespace
        self._mutexes: dict[int, threading.RLock] = {}
        self._by_length: dict[int, Lease] = {}
        self._shared: dict[int, tuple[int, float]] = {}
        """Maps the length of a period in seconds to the id of its present shared lease, and to the
        local time until which that is the present one.
        """
        self._unended: list[Lease] = []
        """The leases that are over by our clock and not yet known to be over on the server."""
        self._end_at = 0.0
        self._closed = False

    @staticmethod
    def length(lease_seconds: float) -> int:
        """Return the number of whole seconds to ask the server for."""
        return max(1, math.ceil(lease_seconds))

    def good(self, lease_seconds: float, timeout_seconds: float) -> Lease:
        """Return a lease of this length, rounded up to seconds, with enough left for a grant.

        Raises BackendError.
        """
        length = self.length(lease_seconds)
        lease = self._by_length.get(length)
        if lease is not None and lease.is_good(now_seconds()):
            return lease
        give_up_at = now_seconds() + timeout_seconds

        def make_good() -> Lease:
            lease = self._by_length.get(length)
            if lease is not None and not lease.is_good(now_seconds()):
                self._renew(lease, give_up_at - now_seconds())
            if lease is None or lease.gone:
                lease = self._by_length[length] = self._grant(length, give_up_at - now_seconds())
            return lease

        return self._alone(length, timeout_seconds, make_good)

    def renew(self, lease: Lease, timeout_seconds: float) -> None:
        """Renew this lease, and read which keys depend on it.

        Does nothing if another thread has renewed it since this call began. Raises BackendError.
        """
        asked_at = now_seconds()

        def renew() -> None:
            if lease.asked_at < asked_at:
                self._renew(lease, asked_at + timeout_seconds - now_seconds())

        self._alone(lease.length, timeout_seconds, renew)

    def maintain(self, now: float) -> float | None:
        """End the leases on the server that are over here. Return the local time of the next call.

        A lease may live longer on the server than its local deadline says, because a new leader,
        also after a restart, gives it a whole term from the time at which it became leader. Until
        the lease ends, everybody would wait for holds and places that this client has given up.
        """
        for lease in list(self._by_length.values()):
            if not lease.gone and now >= lease.deadline:
                self.give_up_if_over(lease)
        while self._unended and now >= self._end_at:
            try:
                self._revoke(self._unended[0].id, END_SECONDS)
            except BackendUnavailableError:
                self._end_at = now_seconds() + END_SECONDS
            else:
                del self._unended[0]
        due = [
            max(lease.deadline, now + END_SECONDS)
            for lease in list(self._by_length.values())
            if not lease.gone
        ]
        return min([*due, self._end_at] if self._unended else due, default=None)

    def give_up_if_over(self, lease: Lease) -> bool:
        """End a lease whose local deadline has passed.

        Return False if that is still to come, or if a renewal is under way.
        """
        with suppress(BackendUnavailableError):
            self._alone(lease.length, 0.0, partial(self._give_up_if_over, lease))
        return lease.gone

    def _give_up_if_over(self, lease: Lease) -> None:
        if not lease.gone and now_seconds() >= lease.deadline:
            lease.gone = True
            self._unended.append(lease)

    def shared_id(self, period_seconds: int, timeout_seconds: float) -> int:
        """Return the id of a lease that all clients of the namespace share.

        A key that is tied to it now is kept for at least one period and at most two. Raises
        BackendError.
        """
        lease_id, until = self._shared.get(period_seconds, (0, 0.0))
        if now_seconds() < until:
            return lease_id
        # The wall clock tells which period this is. It decides only which lease is used.
        period, into_seconds = divmod(int(time.time()), period_seconds)
        shared = hashlib.sha256(f"{self._namespace} {period_seconds}".encode()).digest()
        lease_id = int.from_bytes(shared[:5], "big") << 20 | period & 0xFFFFF
        try:
            self._connections.call(
                LEASE_GRANT,
                messages().LeaseGrantRequest(TTL=2 * period_seconds, ID=lease_id),
                timeout_seconds,
            )
        except BackendUnavailableError:
            raise
        except BackendError as error:
            if "lease already exists" not in str(error):
                raise
        self._shared[period_seconds] = lease_id, now_seconds() + period_seconds - into_seconds
        return lease_id

    def separate(self, seconds: float, timeout_seconds: float) -> Lease:
        """Return a new lease of this length, rounded up to seconds, on which nothing else depends.

        It runs out unless :meth:`renew` is called for it. The server may make it longer, up to its
        least length. Raises BackendError.
        """
        return self._grant(self.length(seconds), timeout_seconds)

    def end(self, lease_id: int, timeout_seconds: float) -> None:
        """End a lease on the server that no key depends on. If it does not answer, it runs out."""
        with suppress(BackendUnavailableError):
            self._revoke(lease_id, timeout_seconds)

    def forget_shared(self) -> None:
        """Ask for the shared leases again before their next use, because they may be gone."""
        self._shared.clear()

    def revoke_all(self, timeout_seconds: float) -> None:
        """End the client's leases on the server, and all keys that still depend on them.

        If the server does not answer, they end there by themselves.
        """
        self._closed = True
        leases = [*self._unended, *(lease for lease in self._by_length.values() if not lease.gone)]
        self._unended, self._by_length = [], {}
        for lease in leases:
            lease.gone = True
            try:
                self._revoke(lease.id, timeout_seconds)
            except BackendUnavailableError:
                return

    def _revoke(self, lease_id: int, timeout_seconds: float) -> None:
        """End a lease on the server, if it still exists. Raises BackendUnavailableError."""
        try:
            self._connections.call(
                LEASE_REVOKE, messages().LeaseRevokeRequest(ID=lease_id), timeout_seconds
            )
        except BackendUnavailableError:
            raise
        except BackendError:
            pass

    def _alone(self, length: int, timeout_seconds: float, action: Callable[[], _Result]) -> _Result:
        mutex = self._mutexes.setdefault(length, make_mutex())
        return alone(mutex, timeout_seconds, "the renewal of a lease that others wait for", action)

    def _grant(self, length: int, timeout_seconds: float) -> Lease:
        asked_at = now_seconds()
        answer = self._connections.call(
            LEASE_GRANT, messages().LeaseGrantRequest(TTL=length), timeout_seconds
        )
        if self._closed:  # the new lease ends by itself
            raise BackendUnavailableError("the connection to etcd is closed")
        return Lease(answer.ID, length, answer.TTL, asked_at)

    def _renew(self, lease: Lease, timeout_seconds: float) -> None:
        # Past its local deadline the lease is over, even if the server still has it. If it were
        # renewed, it would keep locks that their holders have given up.
        self._give_up_if_over(lease)
        if lease.gone:
            return
        give_up_at = now_seconds() + timeout_seconds
        asked_at, seconds = self._connections.keep_alive(
            lease.id, locks_prefix(self._namespace, ""), timeout_seconds
        )
        if seconds <= 0:
            lease.gone = True
            return
        lease.asked_at, lease.deadline = asked_at, max(lease.deadline, asked_at + seconds)
        request = messages().LeaseTimeToLiveRequest(ID=lease.id, keys=True)
        try:
            keys = self._connections.call(
                LEASE_TIME_TO_LIVE, request, give_up_at - now_seconds()
            ).keys
        except LeaseGoneError:
            lease.gone = True
        except BackendError as error:
            # The renewal is valid all the same. The next one reads the keys again.
            logger.debug("fencedlock: the keys of a lease can't be read: %s", error)
        else:
            lease.keys, lease.checked_at = frozenset(keys), asked_at
