"""One lock on etcd: what is asked of the cluster, and what its answers mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fencedlock.backends.etcd.connections import LEASE_TIME_TO_LIVE, RANGE, TXN, LeaseGoneError
from fencedlock.backends.etcd.floors import FloorHistory
from fencedlock.backends.etcd.keys import LockKeys
from fencedlock.backends.etcd.leases import Lease
from fencedlock.backends.etcd.messages import (
    CREATE,
    EQUAL,
    GREATER,
    LESS,
    MOD,
    OLDEST_FIRST,
    VALUE,
    VERSION,
    messages,
)
from fencedlock.backends.etcd.queue import GRACE_SECONDS
from fencedlock.backends.etcd.server import EtcdCluster
from fencedlock.backends.etcd.ticket import EtcdTicket, ticket_of
from fencedlock.backends.etcd.transactions import LockTransactions
from fencedlock.backends.etcd.values import (
    KEPT_OPERATION,
    LockState,
    claims_in,
    detached_owner,
    first_values_of,
    holder_value,
    place_value,
    read_holder,
    read_place,
    read_wanted,
    wanted_value,
)
from fencedlock.clock import now_seconds
from fencedlock.core.answers import (
    RELEASED,
    Busy,
    ClaimAnswer,
    Gone,
    Grant,
    NotOurs,
    ReleaseAnswer,
    Waiting,
)
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.info import LockInfo, Waiter
from fencedlock.errors import BackendUnavailableError
from fencedlock.runtime.interrupts import make_mutex

RECHECK_SECONDS = 30.0
"""The interval at which a waiter asks by itself while its queue is followed.

It is long, because events tell the waiter all that it has to know.
"""

BLIND_RECHECK_SECONDS = 1.0
"""The interval at which a waiter asks by itself while its queue can't be followed."""

LOOK_SECONDS = 0.02
"""The interval at which a single try looks whether the waiters of a free lock take it."""

MARK_SECONDS = 90 * 24 * 3600
"""The least time, in seconds, for which the mark of a grant is kept, unless a release deletes it.

By this mark the next holder knows that the hold was abandoned.
"""

TOMBSTONE_SECONDS = 24 * 3600
"""The least time, in seconds, for which a claim that is over is remembered.

It is remembered if one of its packets may still be under way.
"""

_MOST_LEASES = 3
"""The number of leases in a row that one question may find gone."""


class EtcdLock:
    """Implements :class:`fencedlock.core.backend.BoundLock`."""

    __slots__ = ("_transactions", "changing", "cluster", "keys", "last_grant", "name")

    def __init__(self, cluster: EtcdCluster, name: str, keys: LockKeys) -> None:
        self.name: str = name
        self.keys: LockKeys = keys
        self.changing: AbstractContextManager[bool] = make_mutex()
        """Held while a hold of the lock is renewed or moved to another lease.

        Both the heartbeat and the owner do so.
        """
        self.last_grant: int = 0
        """The revision of the last grant to a claim of this client."""
        self.cluster: EtcdCluster = cluster
        self._transactions = LockTransactions.of(keys)

    # --- acquire

    def begin(self) -> EtcdTicket:
        return EtcdTicket()

    def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        give_up_at = now_seconds() + timeout_seconds
        for _ in range(_MOST_LEASES):
            try:
                return self._acquire(claim, join=join, give_up_at=give_up_at)
            except LeaseGoneError:
                # Our lease is gone, or the shared one. A place that was tied to our lease is gone
                # with it.
                self.cluster.leases.forget_shared()
                self.cluster.leases.renew(ticket_of(claim).lease, give_up_at - now_seconds())
        raise BackendUnavailableError("etcd has forgotten three leases in a row")

    def _acquire(self, claim: Claim, *, join: bool, give_up_at: float) -> ClaimAnswer:
        cluster = self.cluster
        shared_id = cluster.leases.shared_id(MARK_SECONDS, give_up_at - now_seconds())
        ticket = self._ticket_with_lease(claim, give_up_at)
        if join and not ticket.number:
            ticket.number = cluster.places.take()
        pass_over = bool(ticket.place) and cluster.inbox.may_pass_over(self.keys, claim.id)
        request = self._acquire_request(claim, ticket, shared_id, join=join, pass_over=pass_over)
        answer = self._ask_for(claim, request, give_up_at)
        if not (answer.succeeded or join or claim.patient):
            answer = self._try_again_if_free(claim, ticket, shared_id, answer)
        state = LockState(answer.responses[0].response_range.kvs, self.keys)
        if answer.succeeded:
            return self._granted(
                claim,
                ticket,
                answer.header.revision,
                state.floors,
                abandoned=state.grant is not None,
            )
        if state.holder is not None and read_holder(state.holder.value).is_held_by(claim.id):
            # An earlier copy of the question was granted, and its answer was lost.
            self._tie(state.holder, ticket.lease, give_up_at)
            abandoned = state.grant is not None and state.grant.version > 1
            return self._granted(
                claim, ticket, state.holder.create_revision, state.floors, abandoned=abandoned
            )
        if not join:
            return Busy()
        line, joined = answer.responses[1].response_range, answer.responses[2].response_txn
        if joined.succeeded:
            ticket.place, ticket.since = answer.header.revision, now_seconds()
        else:
            place, withdrawn = (operation.response_range.kvs for operation in joined.responses)
            if withdrawn:
                return Gone()
            if place[0].lease != ticket.lease.id:
                # The place is tied to a lease that is over here, but not on the server. It must not
                # keep our turn any more.
                self._delete_made_at(
                    place[0].create_revision, place[0].key, give_up_at - now_seconds()
                )
                raise LeaseGoneError("the claim's place was tied to a lease that is over")
            ticket.place = place[0].create_revision
        ahead = claims_in(line.kvs, self.keys)
        cluster.inbox.wait(
            self.keys, claim.id, answer.header.revision, ahead, are_all=not line.more
        )
        return self.waiting(now_seconds() + RECHECK_SECONDS)

    def _ticket_with_lease(self, claim: Claim, give_up_at: float) -> EtcdTicket:
        """Return the claim's ticket, with a lease of which enough is left for a grant."""
        leases, ticket = self.cluster.leases, ticket_of(claim)
        lease = ticket.maybe_lease
        if lease is not None and not lease.is_good(now_seconds()):
            leases.renew(lease, give_up_at - now_seconds())
        if lease is None or lease.gone:
            ticket.tie(leases.good(claim.lease_seconds, give_up_at - now_seconds()))
        return ticket

    def _tie(self, holder: Any, lease: Lease, give_up_at: float) -> None:
        """Tie a granted hold to our present lease, if it is tied to another one.

        The other lease is over by our clock. The hold would end with it on the server, while we
        still believe in it. Raises LeaseGoneError if the hold has ended.
        """
        if holder.lease != lease.id:
            self._put_over(holder, holder.value, lease, give_up_at)

    def _put_over(
        self, holder: Any, value: bytes, lease: Lease, give_up_at: float, wanted: str | None = None
    ) -> None:
        """Write the holder's key, and tie it to this lease. Raises LeaseGoneError if it changed.

        ``wanted`` is a request to the holder, which goes with it.
        """
        known = messages()
        put = known.PutRequest(key=holder.key, value=value, lease=lease.id)
        puts = [known.RequestOp(request_put=put)]
        if wanted is not None:
            puts.append(self._put_wanted(holder.create_revision, wanted, lease.id))
        if not self._do_if_unchanged(holder, puts, give_up_at):
            raise LeaseGoneError("the grant ended together with its lease")

    def _do_if_unchanged(self, holder: Any, operations: list[Any], give_up_at: float) -> bool:
        """Do these operations, unless the holder's key has changed since it was read."""
        known = messages()
        request = known.TxnRequest(
            compare=[
                known.Compare(
                    result=EQUAL, target=MOD, key=holder.key, mod_revision=holder.mod_revision
                )
            ],
            success=operations,
        )
        answer = self.cluster.connections.call(TXN, request, give_up_at - now_seconds())
        return bool(answer.succeeded)

    def _put_wanted(self, revision: int, reason: str, lease_id: int) -> Any:
        """Return the operation that asks the holder whose key has this ``create_revision``."""
        known = messages()
        put = known.PutRequest(
            key=self.keys.wanted, value=wanted_value(revision, reason), lease=lease_id
        )
        return known.RequestOp(request_put=put)

    def waiting(self, recheck_at: float) -> Waiting:
        """Return the answer that the claim waits, and the time at which it should ask by itself.

        The time is ``recheck_at``, or sooner while no events of the queue arrive.
        """
        now = now_seconds()
        if not self.cluster.inbox.follows(self.keys):
            recheck_at = min(recheck_at, now + BLIND_RECHECK_SECONDS)
        return Waiting(now, 0, recheck_at)

    def _ask_for(self, claim: Claim, request: Any, give_up_at: float) -> Any:
        """Send a transaction that may grant the claim, and record whether an answer is missing."""
        ticket = ticket_of(claim)
        before, ticket.unanswered = ticket.unanswered, True
        at_least = self.cluster.highest_revision
        answer, sent = self.cluster.connections.call_counted(
            TXN, request, give_up_at - now_seconds()
        )
        if sent == 1:
            ticket.unanswered = before
        self.cluster.saw_revision(answer.header.revision, at_least)
        return answer

    def _acquire_request(
        self, claim: Claim, ticket: EtcdTicket, shared_id: int, *, join: bool, pass_over: bool
    ) -> Any:
        """Return the transaction that takes the lock if it is free and no claim is before this one.

        With ``join``, it takes a place in the queue otherwise. With ``pass_over``, it does not
        matter which claims are before this one.
        """
        request = messages().TxnRequest.FromString(
            self._transactions.queue if join else self._transactions.attempt
        )
        tombstone = self.keys.tombstone_of(claim.id)
        compare, take = request.compare, request.success
        compare[1].key = tombstone
        if pass_over:
            del compare[2]
        elif ticket.place:
            compare[2].result, compare[2].create_revision = GREATER, ticket.place - 1
        hold, mark = take[1].request_put, take[2].request_put
        ticket.asked_ms = time.time_ns() // 1_000_000
        hold.value = holder_value(0, claim.id, 1, claim.owner.holder, ticket.asked_ms)
        hold.lease, mark.lease = ticket.lease.id, shared_id
        if ticket.place or ticket.unanswered:
            take.extend(self._leave(claim, ticket.number))
        if join:
            take_place, place = (
                request.failure[2].request_txn,
                self.keys.place_of(claim.id, ticket.number),
            )
            put = take_place.success[0].request_put
            put.key, put.value, put.lease = (
                place,
                place_value(claim.id, claim.owner.holder),
                ticket.lease.id,
            )
            for compared, read, key in zip(
                take_place.compare, take_place.failure, (place, tombstone), strict=True
            ):
                compared.key = read.request_range.key = key
        return request

    def _try_again_if_free(
        self, claim: Claim, ticket: EtcdTicket, shared_id: int, answer: Any
    ) -> Any:
        """Try again to take a lock that a single try found free while others wait for it.

        If the others do not take the lock soon, they are dead, and this claim may take it. Return
        the answer to the last attempt.
        """
        patience_until = now_seconds() + GRACE_SECONDS
        give_up_at = patience_until + self.cluster.request_timeout_seconds
        look = messages().RangeRequest(key=self.keys.floor, range_end=self.keys.holder_end)
        kvs = answer.responses[0].response_range.kvs
        while LockState(kvs, self.keys).holder is None:
            if now_seconds() >= patience_until:
                return self._ask_for(
                    claim,
                    self._acquire_request(claim, ticket, shared_id, join=False, pass_over=True),
                    give_up_at,
                )
            time.sleep(LOOK_SECONDS)
            kvs = self.cluster.connections.call(RANGE, look, give_up_at - now_seconds()).kvs
        return answer

    def _granted(
        self,
        claim: Claim,
        ticket: EtcdTicket,
        revision: int,
        floors: FloorHistory,
        *,
        abandoned: bool,
    ) -> Grant:
        ticket.revision, ticket.since = revision, now_seconds()
        self.last_grant = max(self.last_grant, revision)
        self.cluster.inbox.give_up(self.keys, claim.id)
        if not ticket.unanswered:
            self.cluster.places.give_back(ticket, 0)
        lease = ticket.lease
        return (
            floors.token_of(revision),
            lease.deadline,
            abandoned,
            not lease.is_fresh(now_seconds()),
        )

    # --- operations on a hold

    def write(self, hold: Hold, lease: Lease, timeout_seconds: float) -> bool:
        """Write the hold's depth, and tie the hold to this lease.

        Return False if the hold is not ours any more. Raises BackendError.
        """
        known, ticket, operation = messages(), ticket_of(hold), hold.operation
        value = holder_value(
            ticket.before + operation,
            hold.claim_id,
            hold.depth,
            hold.owner.holder,
            ticket.asked_ms,
        )
        put = known.PutRequest(key=self.keys.holder, value=value, lease=lease.id)
        request = known.TxnRequest(
            compare=[
                known.Compare(
                    result=EQUAL,
                    target=CREATE,
                    key=self.keys.holder,
                    create_revision=ticket.revision,
                ),
                known.Compare(result=LESS, target=VALUE, key=self.keys.holder, value=value),
            ],
            success=[known.RequestOp(request_put=put)],
            failure=[known.RequestOp(request_range=known.RangeRequest(key=self.keys.holder))],
        )
        answer = self.cluster.connections.call(TXN, request, timeout_seconds)
        if not answer.succeeded:
            kvs = answer.responses[0].response_range.kvs
            if not kvs or kvs[0].create_revision != ticket.revision:
                return False
            # An earlier copy of this operation, or a later operation, has been written, perhaps
            # with another lease.
            if kvs[0].lease != lease.id:
                return True
        ticket.maybe_lease = lease
        ticket.written = max(ticket.written, operation)
        return True

    def release(self, hold: Hold, timeout_seconds: float, attempts: int = 1) -> ReleaseAnswer:
        ticket = ticket_of(hold)

        def make(marks: list[Any]) -> Any:
            request = messages().TxnRequest.FromString(self._transactions.release)
            request.compare[0].create_revision = ticket.revision
            if marks:
                bury = [*self._leave(hold.claim, ticket.number), *marks]
                request.success.extend(bury)
                request.failure.extend(bury)
            return request

        answer, sent = self._end_claim(hold.claim, make, timeout_seconds, attempts=attempts)
        if answer.succeeded:
            return RELEASED
        # The grant writes the mark, and only a release of the hold deletes it. If the mark is still
        # there, nobody has released the hold.
        kvs = answer.responses[0].response_range.kvs
        ended = 0 if kvs and kvs[0].mod_revision == ticket.revision else hold.token
        return NotOurs(ended=ended, replayed=sent > 1)

    def keep(
        self, hold: Hold, keep_seconds: float, timeout_seconds: float, attempts: int = 1
    ) -> ReleaseAnswer:
        ticket = ticket_of(hold)
        give_up_at = now_seconds() + timeout_seconds
        value = holder_value(
            KEPT_OPERATION, hold.claim_id, hold.depth, hold.owner.holder, ticket.asked_ms
        )
        # One lease, although the request may be repeated in the background.
        lease = ticket.kept
        if lease is None:
            lease = ticket.kept = self.cluster.leases.separate(keep_seconds, timeout_seconds)
        more = [_delete(self.keys.grant), _delete(self.keys.wanted)]
        try:
            return self._leave_key(
                hold, value, lease, more, give_up_at - now_seconds(), attempts=attempts
            )
        except LeaseGoneError:
            ticket.kept = None
            raise

    def detach(
        self, hold: Hold, digest: str, lease_seconds: float, timeout_seconds: float
    ) -> ReleaseAnswer:
        ticket = ticket_of(hold)
        value = holder_value(
            # No write of the hold that comes late is greater.
            ticket.before + hold.operation + 1,
            detached_owner(digest, hold.claim_id),
            hold.depth,
            hold.owner.holder,
            ticket.asked_ms,
        )
        give_up_at = now_seconds() + timeout_seconds
        lease = self.cluster.leases.separate(lease_seconds, timeout_seconds)
        wanted = self.wanted_of(hold, give_up_at - now_seconds())
        more = [] if wanted is None else [self._put_wanted(ticket.revision, wanted, lease.id)]
        return self._leave_key(hold, value, lease, more, give_up_at - now_seconds(), attempts=1)

    def _leave_key(
        self,
        hold: Hold,
        value: bytes,
        lease: Lease,
        more: list[Any],
        timeout_seconds: float,
        *,
        attempts: int,
    ) -> ReleaseAnswer:
        """End the hold, but leave its key with this value until this lease ends.

        ``more`` is done in the same transaction.
        """
        known, keys, ticket = messages(), self.keys, ticket_of(hold)
        look = known.RangeRequest(key=keys.grant, range_end=keys.holder_end)
        put = known.PutRequest(key=keys.holder, value=value, lease=lease.id)

        def make(marks: list[Any]) -> Any:
            bury = [*self._leave(hold.claim, ticket.number), *marks] if marks else []
            return known.TxnRequest(
                compare=[
                    known.Compare(
                        result=EQUAL,
                        target=CREATE,
                        key=keys.holder,
                        create_revision=ticket.revision,
                    ),
                    known.Compare(result=LESS, target=VALUE, key=keys.holder, value=value),
                ],
                success=[known.RequestOp(request_put=put), *more, *bury],
                failure=[known.RequestOp(request_range=look), *bury],
            )

        answer, sent = self._end_claim(hold.claim, make, timeout_seconds, attempts=attempts)
        if answer.succeeded:
            return RELEASED
        state = LockState(answer.responses[0].response_range.kvs, keys)
        if (
            state.holder is not None
            and state.holder.create_revision == ticket.revision
            and state.holder.value == value
        ):
            return RELEASED  # by an earlier copy of this request
        self.cluster.leases.end(lease.id, timeout_seconds)
        marked = state.grant is not None and state.grant.mod_revision == ticket.revision
        return NotOurs(ended=0 if marked else hold.token, replayed=sent > 1)

    def attach(self, claim: Claim, digest: str, timeout_seconds: float) -> ClaimAnswer:
        give_up_at = now_seconds() + timeout_seconds
        for _ in range(_MOST_LEASES):
            try:
                return self._attach(claim, digest, give_up_at)
            except LeaseGoneError:
                # Our lease is gone, or somebody has changed the hold meanwhile.
                ticket_of(claim).maybe_lease = None
        raise BackendUnavailableError("etcd has forgotten three leases in a row")

    def _attach(self, claim: Claim, digest: str, give_up_at: float) -> ClaimAnswer:
        known, keys, call = messages(), self.keys, self.cluster.connections.call
        ticket = ticket_of(claim)
        if ticket.maybe_lease is None or not ticket.lease.is_good(now_seconds()):
            # If no answer arrives and nobody asks again, the lock opens with this lease. The
            # client's own lease would keep it closed for as long as the client has other locks.
            ticket.tie(
                self.cluster.leases.separate(claim.lease_seconds, give_up_at - now_seconds())
            )
        look = known.RangeRequest(key=keys.floor, range_end=keys.holder_end)
        state = LockState(call(RANGE, look, give_up_at - now_seconds()).kvs, keys)
        if state.holder is None:
            return Gone()
        found = read_holder(state.holder.value)
        ticket.asked_ms = found.since_ms
        if found.is_held_by(claim.id):
            # An earlier copy of the request has attached it, and its answer was lost.
            ticket.before = found.operation
            self._tie(state.holder, ticket.lease, give_up_at)
        elif found.digest != digest:
            return Gone()
        else:
            ticket.before = found.operation + 1
            value = holder_value(
                ticket.before, claim.id, found.depth, claim.owner.holder, found.since_ms
            )
            self._put_over(state.holder, value, ticket.lease, give_up_at, state.wanted)
            self.cluster.leases.end(state.holder.lease, give_up_at - now_seconds())
        # The mark of an abandoned hold before that of the detached hold has made another version.
        abandoned = state.grant is not None and state.grant.version > 1
        return self._granted(
            claim, ticket, state.holder.create_revision, state.floors, abandoned=abandoned
        )

    def abandon(self, hold: Hold, timeout_seconds: float) -> None:
        self._delete_made_at(ticket_of(hold).revision, self.keys.holder, timeout_seconds)

    def withdraw(self, claim: Claim, timeout_seconds: float) -> None:
        known, keys = messages(), self.keys
        self.cluster.inbox.give_up(keys, claim.id)
        ticket = ticket_of(claim)
        if ticket.maybe_lease is None:
            return  # nothing was ever sent
        leave = self._leave(claim, self.cluster.places.withdrawn(ticket))
        first, last = first_values_of(claim.id)
        clean = known.TxnRequest(
            # A mark that was there before the grant is that of an earlier hold, and stays.
            compare=[known.Compare(result=EQUAL, target=VERSION, key=keys.grant, version=1)],
            success=[_delete(keys.grant)],
        )
        compare = [
            known.Compare(result=GREATER, target=VALUE, key=keys.holder, value=first),
            known.Compare(result=LESS, target=VALUE, key=keys.holder, value=last),
        ]

        def make(marks: list[Any]) -> Any:
            forget = [*leave, *marks]
            return known.TxnRequest(
                compare=compare,
                success=[_delete(keys.holder), known.RequestOp(request_txn=clean), *forget],
                failure=forget,
            )

        _, sent = self._end_claim(
            claim, make, timeout_seconds, leaving=ticket.unanswered or ticket.place > 0
        )
        if sent == 1 and not ticket.unanswered:
            self.cluster.places.give_back(ticket, 1)

    def _leave(self, claim: Claim, number: int) -> list[Any]:
        """Return the operation that deletes the claim's place, or none if ``number`` is 0."""
        return [_delete(self.keys.place_of(claim.id, number))] if number else []

    def _end_claim(
        self,
        claim: Claim,
        make: Callable[[list[Any]], Any],
        timeout_seconds: float,
        *,
        attempts: int = 1,
        leaving: bool = False,
    ) -> tuple[Any, int]:
        """Send the transaction that ends a claim, with the marks that it leaves.

        If a packet of the claim may still be under way, a tombstone marks the claim as over. If the
        claim is ``leaving`` the queue without the lock, a mark tells the other waiters.

        Return the answer, and how often the transaction was sent.
        """
        known, cluster, ticket = messages(), self.cluster, ticket_of(claim)
        if not (ticket.unanswered or leaving):
            return cluster.connections.call_counted(
                TXN, make([]), timeout_seconds, attempts=attempts
            )
        give_up_at = now_seconds() + timeout_seconds
        for last_try in (False, True):
            lease_id = cluster.leases.shared_id(TOMBSTONE_SECONDS, give_up_at - now_seconds())
            puts = []
            if ticket.unanswered:
                puts.append(known.PutRequest(key=self.keys.tombstone_of(claim.id), lease=lease_id))
            if leaving:
                puts.append(
                    known.PutRequest(key=self.keys.left, value=claim.id.encode(), lease=lease_id)
                )
            marks = [known.RequestOp(request_put=put) for put in puts]
            try:
                answer, sent = cluster.connections.call_counted(
                    TXN, make(marks), give_up_at - now_seconds(), attempts=attempts
                )
                # The first try may have sent another copy before the one that was refused.
                return answer, sent + last_try
            except LeaseGoneError:
                cluster.leases.forget_shared()
                if last_try:
                    raise
        raise AssertionError

    # --- inspection and repair

    def inspect(self, timeout_seconds: float) -> LockInfo:
        give_up_at = now_seconds() + timeout_seconds
        known, keys, call = messages(), self.keys, self.cluster.connections.call
        look = known.RangeRequest(key=keys.floor, range_end=keys.queue_end, **OLDEST_FIRST)
        kvs = call(RANGE, look, timeout_seconds).kvs
        state = LockState(kvs, keys)
        line = [kv for kv in kvs if kv.key.startswith(keys.queue)]
        left: dict[int, float] = {}
        for kv in [*line, *([] if state.holder is None else [state.holder])]:
            if kv.lease not in left:
                request = known.LeaseTimeToLiveRequest(ID=kv.lease)
                try:
                    left[kv.lease] = max(
                        0.0, call(LEASE_TIME_TO_LIVE, request, give_up_at - now_seconds()).TTL
                    )
                except LeaseGoneError:
                    left[kv.lease] = 0.0
        waiters = tuple(Waiter(*read_place(kv.value), left[kv.lease]) for kv in line)
        if state.holder is None:
            issued = (
                None if state.grant is None else state.floors.token_of(state.grant.mod_revision)
            )
            return LockInfo(self.name, False, None, None, None, 0, 0.0, issued, waiters)
        found, token = (
            read_holder(state.holder.value),
            state.floors.token_of(state.holder.create_revision),
        )
        since = found.since_ms / 1000
        return LockInfo(
            self.name,
            True,
            found.claim_id,
            found.holder,
            token,
            found.depth,
            left[state.holder.lease],
            token,
            waiters,
            since,
            detached=bool(found.digest),
            wanted=state.wanted,
        )

    def force_release(self, token: int, timeout_seconds: float) -> bool:
        give_up_at = now_seconds() + timeout_seconds
        revision = self.revision_of(token, timeout_seconds)
        return self._delete_made_at(revision, self.keys.holder, give_up_at - now_seconds())

    def request_release(self, reason: str, timeout_seconds: float) -> bool:
        give_up_at = now_seconds() + timeout_seconds
        look = messages().RangeRequest(key=self.keys.holder)
        while True:
            kvs = self.cluster.connections.call(RANGE, look, give_up_at - now_seconds()).kvs
            if not kvs or read_holder(kvs[0].value).operation == KEPT_OPERATION:
                return False
            (holder,) = kvs
            put = self._put_wanted(holder.create_revision, reason, holder.lease)
            try:
                if self._do_if_unchanged(holder, [put], give_up_at):
                    return True
            except LeaseGoneError:
                pass  # the hold has just ended with it

    def wanted_of(self, hold: Hold, timeout_seconds: float) -> str | None:
        """Return the reason for which somebody has asked for this hold, None if nobody has."""
        request = messages().RangeRequest(key=self.keys.wanted)
        kvs = self.cluster.connections.call(RANGE, request, timeout_seconds).kvs
        return read_wanted(kvs[0], ticket_of(hold).revision) if kvs else None

    def _delete_made_at(self, revision: int, key: bytes, timeout_seconds: float) -> bool:
        """Delete a key that was made at this revision. Return False if it was gone already.

        A key that was made later stays, so a late copy of the request does no harm. If the key is a
        holder's, its mark stays too, by which the next holder knows that the hold was abandoned.
        """
        known = messages()
        compare = [known.Compare(result=EQUAL, target=CREATE, key=key, create_revision=revision)]
        request = known.TxnRequest(compare=compare, success=[_delete(key)])
        answer, sent = self.cluster.connections.call_counted(TXN, request, timeout_seconds)
        return answer.succeeded or sent > 1

    def raise_floor(self, token: int, timeout_seconds: float) -> None:
        give_up_at = now_seconds() + timeout_seconds
        known, key, call = messages(), self.keys.floor, self.cluster.connections.call
        while True:
            answer = call(RANGE, known.RangeRequest(key=key), give_up_at - now_seconds())
            floors = FloorHistory.read(answer.kvs[0] if answer.kvs else None)
            if floors.token_of(answer.header.revision + 1) > token:
                return
            value = floors.raised_by(token - answer.header.revision)
            request = known.TxnRequest(
                compare=[
                    known.Compare(result=EQUAL, target=MOD, key=key, mod_revision=floors.since)
                ],
                success=[known.RequestOp(request_put=known.PutRequest(key=key, value=value))],
            )
            if call(TXN, request, give_up_at - now_seconds()).succeeded:
                return

    def revision_of(self, token: int, timeout_seconds: float) -> int:
        """Return the ``create_revision`` of the holder's key for the hold with this token."""
        kvs = self.cluster.connections.call(
            RANGE, messages().RangeRequest(key=self.keys.floor), timeout_seconds
        ).kvs
        return FloorHistory.read(kvs[0] if kvs else None).revision_of(token)


def _delete(key: bytes) -> Any:
    known = messages()
    return known.RequestOp(request_delete_range=known.DeleteRangeRequest(key=key))
