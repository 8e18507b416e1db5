"""The leases of a client: one for each length, kept alive by the beats of whatever depends on it."""

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
from fencedlock.runtime.threads import make_mutex

logger: logging.Logger = logging.getLogger("fencedlock")

_Result = TypeVar("_Result")

LEAST_SHARE = 2 / 3
"""A grant has at least this share of its lease before it."""

END_SECONDS = 0.25
"""The server is asked so often to end a lease that is over here, and has so long to answer."""

FRESH_SHARE = 1 / 6
"""A beat within this share of the lease after the last one costs nothing: the lease is the same for
all.
"""


class Lease:
    """One lease on the server."""

    __slots__ = ("asked_at", "checked_at", "deadline", "gone", "id", "keys", "length", "seconds")

    def __init__(self, lease_id: int, length: int, seconds: int, asked_at: float) -> None:
        self.id: int = lease_id
        self.length: int = length
        """The seconds that were asked for."""
        self.seconds: int = seconds
        """As granted by the server, which may be longer than asked for."""
        self.asked_at: float = asked_at
        """When the present term began, at the latest."""
        self.deadline: float = asked_at + seconds
        """The local time until which it is good."""
        self.gone: bool = False
        """True once it is over."""
        self.keys: frozenset[bytes] = frozenset()
        """What depended on it at ``checked_at``, or a little before."""
        self.checked_at: float = 0.0

    def is_fresh(self, now: float) -> bool:
        """True if it was renewed so lately that another beat would be a waste."""
        return not self.gone and now < self.asked_at + self.seconds * FRESH_SHARE

    def is_good(self, now: float) -> bool:
        """True if enough of it is left for a grant."""
        return not self.gone and now < self.deadline - self.seconds * LEAST_SHARE


class Leases:
    """One lease for each length that is in use; and one, shared by all clients of a namespace, for what has to outlive them."""

    def __init__(self, connections: Connections, namespace: str) -> None:
        self._connections = connections
        self._namespace = namespace
        self._mutexes: dict[int, threading.RLock] = {}
        self._by_length: dict[int, Lease] = {}
        self._shared: dict[int, tuple[int, float]] = {}
        """By the length of the period: the id, and the local time until which it is the present
        one.
        """
        self._unended: list[Lease] = []
        """Over by our clock, and not yet known to be over on the server."""
        self._end_at = 0.0
        self._closed = False

    @staticmethod
    def length(lease_seconds: float) -> int:
        """The whole seconds to ask for."""
        return max(1, math.ceil(lease_seconds))

    def good(self, lease_seconds: float, timeout_seconds: float) -> Lease:
        """A lease of this length, rounded up to seconds, with enough left for a grant.

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
        """Renew this lease, unless that has just been done, and learn what depends on it.

        Raises BackendError.
        """
        asked_at = now_seconds()

        def renew() -> None:
            if lease.asked_at < asked_at:
                self._renew(lease, asked_at + timeout_seconds - now_seconds())

        self._alone(lease.length, timeout_seconds, renew)

    def maintain(self, now: float) -> float | None:
        """End on the server what is over here; when to call again.

        A lease may live there for longer than we believe: a new leader, and a restart too, gives it
        a whole term from its own beginning. Until then everybody would wait for holds and places
        that nobody here knows any more.
        """
        for lease in list(self._by_length.values()):
            if not lease.gone and now >= lease.deadline:
                with suppress(BackendUnavailableError):
                    self._alone(lease.length, 0.0, partial(self._give_up_if_over, lease))
        while self._unended and now >= self._end_at:
            try:
                self._revoke(self._unended[0], END_SECONDS)
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

    def _give_up_if_over(self, lease: Lease) -> None:
        if not lease.gone and now_seconds() >= lease.deadline:
            lease.gone = True
            self._unended.append(lease)

    def shared_id(self, period_seconds: int, timeout_seconds: float) -> int:
        """The id of a lease that all clients share: what is tied to it now is kept for one period, or up to two. Raises BackendError."""
        lease_id, until = self._shared.get(period_seconds, (0, 0.0))
        if now_seconds() < until:
            return lease_id
        # Which period it is by our wall clock decides nothing but which of these leases is used.
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

    def forget_shared(self) -> None:
        """The shared leases may be gone."""
        self._shared.clear()

    def revoke_all(self, timeout_seconds: float) -> None:
        """End the leases, and whatever still depends on them; without an answer they end by themselves."""
        self._closed = True
        leases = [*self._unended, *(lease for lease in self._by_length.values() if not lease.gone)]
        self._unended, self._by_length = [], {}
        for lease in leases:
            lease.gone = True
            try:
                self._revoke(lease, timeout_seconds)
            except BackendUnavailableError:
                return

    def _revoke(self, lease: Lease, timeout_seconds: float) -> None:
        """End it on the server, unless it has ended by itself. Raises BackendUnavailableError."""
        try:
            self._connections.call(
                LEASE_REVOKE, messages().LeaseRevokeRequest(ID=lease.id), timeout_seconds
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
        if self._closed:  # it ends by itself
            raise BackendUnavailableError("the connection to etcd is closed")
        return Lease(answer.ID, length, answer.TTL, asked_at)

    def _renew(self, lease: Lease, timeout_seconds: float) -> None:
        # Past its deadline here it is over, whatever the server says: renewed, it would keep locks
        # that their holders gave up.
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
            # The renewal stands; what depends on it is known by the next one.
            logger.debug("fencedlock: the keys of a lease can't be read: %s", error)
        else:
            lease.keys, lease.checked_at = frozenset(keys), asked_at
