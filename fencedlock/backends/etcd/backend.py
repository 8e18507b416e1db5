"""The operations on many locks of one etcd cluster, and the beats that keep them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from fencedlock.backends.etcd.connections import RANGE, STATUS
from fencedlock.backends.etcd.keys import after, lock_keys, locks_prefix, name_of
from fencedlock.backends.etcd.leases import Lease
from fencedlock.backends.etcd.lock import EtcdLock
from fencedlock.backends.etcd.messages import messages
from fencedlock.backends.etcd.server import EtcdCluster
from fencedlock.backends.etcd.ticket import EtcdTicket, ticket_of
from fencedlock.backends.thread_calls import ThreadCalls
from fencedlock.clock import now_seconds
from fencedlock.core.answers import ClaimAnswer, Gone, NotOurs, RenewAnswer, Renewed
from fencedlock.core.backend import Backend, Listener
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.roles import ThreadWaker
from fencedlock.errors import BackendError, FencedLockError

_PAGE = 1000

CLOSING_SECONDS = 1.0
"""How long closing waits at most for the leases to end. Later they end by themselves."""

_Target = TypeVar("_Target", Hold, Claim)
_Answer = TypeVar("_Answer")


class EtcdBackend(EtcdCluster):
    """Implements :class:`fencedlock.core.backend.Backend` on one cluster."""

    # --- the operations of many locks

    def bind_lock(self, name: str) -> EtcdLock:
        return EtcdLock(self, name, lock_keys(self._namespace, name))

    def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        round_ = _Round(self, timeout_seconds)
        return [round_.answer(round_.beat, claim) for claim in claims]

    def renew(
        self, holds: Sequence[Hold], timeout_seconds: float, *, exact: bool = False
    ) -> list[RenewAnswer | Exception]:
        round_ = _Round(self, timeout_seconds)
        return [
            round_.answer(round_.renew_exactly if exact else round_.renew, hold) for hold in holds
        ]

    def lock_names(self, prefix: str) -> Iterator[str]:
        start = locks_prefix(self._namespace, prefix)
        end, last = after(start), ""
        while True:
            request = messages().RangeRequest(key=start, range_end=end, limit=_PAGE, keys_only=True)
            answer = self.connections.call(RANGE, request, self.request_timeout_seconds)
            for kv in answer.kvs:
                name = name_of(self._namespace, kv.key)
                if name is not None and name != last:
                    last = name
                    yield name
            if not answer.more:
                return
            start = answer.kvs[-1].key + b"\0"

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        lease = ticket_of(target).maybe_lease
        if lease is None:
            return since + target.lease_seconds
        if not lease.gone and now_seconds() >= lease.deadline:
            # A renewal that is under way may still succeed, and keep the target for ever.
            return since if self.leases.give_up_if_over(lease) else float("inf")
        return since if lease.gone else lease.deadline

    def ping(self, timeout_seconds: float) -> None:
        self.connections.call(
            RANGE, messages().RangeRequest(key=locks_prefix(self._namespace, "")), timeout_seconds
        )

    def check_settings(self, timeout_seconds: float) -> list[str]:
        try:
            status = self.connections.call(STATUS, messages().StatusRequest(), timeout_seconds)
        except BackendError:
            return []
        return [
            f"etcd raised an alarm, so it may refuse new locks: {error}" for error in status.errors
        ]

    def saw(self, name: str, token: int, now: float) -> None:
        """Do nothing: tokens follow the cluster's revision, which :meth:`saw_revision` checks."""

    # gRPC's own asyncio interface would be a second set of connections.
    def calls_of_loop(self, loop: Any, client_id: str, threads: Executor) -> ThreadCalls:  # noqa: ARG002
        return ThreadCalls(self, threads)

    def inherit(self, parent: Backend) -> None:
        assert isinstance(parent, EtcdBackend)
        self.highest_revision: int = parent.highest_revision

    # The inbox opens in the background, so the timeout is not used.
    def listen(self, listener: Listener, timeout_seconds: float) -> None:  # noqa: ARG002
        self.inbox.open(listener)

    def wait(self, bell: ThreadWaker, timeout_seconds: float) -> None:
        bell.wait(timeout_seconds)

    def maintain(self, now: float) -> float | None:
        times = [
            at
            for at in (
                self.inbox.maintain(now),
                self.leases.maintain(now),
                self.connections.maintain(now),
            )
            if at is not None
        ]
        return min(times, default=None)

    def close(self, timeout_seconds: float) -> None:
        if timeout_seconds > 0:
            self.leases.revoke_all(
                min(self.request_timeout_seconds, CLOSING_SECONDS, timeout_seconds)
            )
        self.connections.close()
        self.inbox.close(timeout_seconds)

    def forget_connections(self) -> None:
        self.connections.forget()


class _Round:
    """The beats that are sent together.

    Claims and holds that depend on the same lease share its renewal, or the error of the renewal.
    """

    def __init__(self, backend: EtcdBackend, timeout_seconds: float) -> None:
        self._backend = backend
        self._give_up_at = now_seconds() + timeout_seconds
        self._failed: dict[Lease, FencedLockError] = {}

    def answer(self, ask: Callable[[_Target], _Answer], target: _Target) -> _Answer | Exception:
        """Return the answer to one beat, or its error."""
        try:
            return ask(target)
        except FencedLockError as error:
            return error

    def beat(self, claim: Claim) -> ClaimAnswer:
        """Keep the place of a waiting claim."""
        ticket, bound = ticket_of(claim), _lock_of(claim)
        if ticket.maybe_lease is None:
            return Gone()
        self._refresh(ticket.lease)
        if not self._still_has(ticket, bound.keys.place_of(claim.id, ticket.number), ticket.place):
            return Gone()
        return bound.waiting(claim.recheck_at)

    def renew(self, hold: Hold) -> RenewAnswer:
        """Keep a hold, and write its last operation if the server has not confirmed it yet."""
        leases = self._backend.leases
        with _lock_of(hold).changing:
            lease = ticket_of(hold).lease
            # An earlier renewal, which asked for another length, was not answered.
            if lease.length != leases.length(hold.lease_seconds):
                lease = leases.good(hold.lease_seconds, self._seconds_left())
            self._refresh(lease)
            return self._renewed(hold, lease)

    def renew_exactly(self, hold: Hold) -> RenewAnswer:
        """Keep a hold for its whole length from now on."""
        leases = self._backend.leases
        with _lock_of(hold).changing:
            asked_at = now_seconds()
            lease = leases.good(hold.lease_seconds, self._seconds_left())
            if lease.asked_at < asked_at:
                leases.renew(lease, self._seconds_left())
            return self._renewed(hold, lease)

    def _renewed(self, hold: Hold, lease: Lease) -> RenewAnswer:
        ticket, bound = ticket_of(hold), _lock_of(hold)
        if ticket.revision < bound.last_grant:
            return NotOurs()  # another thread of this client has it
        # A request that the holder has not heard of depends on the lease before.
        moves = lease is not ticket.lease
        if hold.operation != ticket.written or moves:
            ours = not lease.gone and bound.write(hold, lease, self._seconds_left())
        else:
            ours = self._still_has(ticket, bound.keys.holder, ticket.revision)
        if not ours:
            return NotOurs()
        wanted = None
        if moves or bound.keys.wanted in ticket.lease.keys:
            wanted = bound.wanted_of(hold, self._seconds_left())
        # The deadline is that of the lease to which the key is known to be tied.
        return Renewed(ticket.lease.deadline, wanted)

    def _refresh(self, lease: Lease) -> None:
        if lease.is_fresh(now_seconds()):
            return
        if lease in self._failed:
            raise self._failed[lease]
        try:
            self._backend.leases.renew(lease, self._seconds_left())
        except FencedLockError as error:
            self._failed[lease] = error
            raise

    def _still_has(self, ticket: EtcdTicket, key: bytes, revision: int) -> bool:
        """Return True if the key still exists and was not made anew."""
        lease = ticket.lease
        if lease.gone:
            return False
        if key in lease.keys or ticket.since >= lease.checked_at:
            return True
        # The list of a lease's keys may be older than the last transaction. So if the key is not in
        # it, the server is asked for the key.
        answer = self._backend.connections.call(
            RANGE, messages().RangeRequest(key=key), self._seconds_left()
        )
        return bool(answer.kvs) and answer.kvs[0].create_revision == revision

    def _seconds_left(self) -> float:
        return self._give_up_at - now_seconds()


def _lock_of(target: Claim | Hold) -> EtcdLock:
    assert isinstance(target.bound, EtcdLock)
    return target.bound
