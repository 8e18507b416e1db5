"""The compare-and-set transactions that acquire and release a lock, as templates."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from fencedlock.backends.etcd.keys import LockKeys
from fencedlock.backends.etcd.messages import CREATE, EQUAL, OLDEST_FIRST, VERSION, messages

MOST_IN_LINE = 1000
"""The most claims before it that a claim is told of when it takes a place.

It is told of further ones when these have left.
"""


class LockTransactions(NamedTuple):
    """The serialized transactions of one lock. Each claim fills in its own values.

    Parsing a template and filling it in takes a third of the time that building a transaction
    takes, because there each part is copied into the next.
    """

    attempt: bytes
    """Takes the lock if it is free and no other claim is before this one.

    In any case, operation 0 reads the grant, the floor and the holder.
    """
    queue: bytes
    """Does the same. If it can't take the lock, it takes a place in the queue.

    Then operation 1 reads the queue, and operation 2 takes the place.
    """
    release: bytes
    """Deletes the holder and the grant. If the hold is gone, it reads the grant instead."""

    @staticmethod
    @lru_cache(1024)  # a lock that is only looked at has new ones each time
    def of(keys: LockKeys) -> LockTransactions:
        known = messages()
        look = known.RequestOp(
            request_range=known.RangeRequest(key=keys.floor, range_end=keys.holder_end)
        )
        attempt = known.TxnRequest(
            compare=[
                known.Compare(result=EQUAL, target=CREATE, key=keys.holder, create_revision=0),
                known.Compare(result=EQUAL, target=VERSION, version=0),  # the tombstone
                known.Compare(
                    result=EQUAL,
                    target=CREATE,
                    key=keys.queue,
                    range_end=keys.queue_end,
                    create_revision=0,
                ),
            ],
            success=[
                look,
                known.RequestOp(request_put=known.PutRequest(key=keys.holder)),
                known.RequestOp(request_put=known.PutRequest(key=keys.grant)),
            ],
            failure=[look],
        )
        join = known.TxnRequest(
            # Here and below, the first one is for the place, and the second for the tombstone.
            compare=[known.Compare(result=EQUAL, target=VERSION, version=0)] * 2,
            success=[known.RequestOp(request_put=known.PutRequest())],
            failure=[known.RequestOp(request_range=known.RangeRequest())] * 2,
        )
        line = known.RangeRequest(
            key=keys.queue, range_end=keys.queue_end, limit=MOST_IN_LINE, **OLDEST_FIRST
        )
        queue = known.TxnRequest(
            failure=[known.RequestOp(request_range=line), known.RequestOp(request_txn=join)]
        )
        release = known.TxnRequest(
            compare=[known.Compare(result=EQUAL, target=CREATE, key=keys.holder)],
            success=[
                known.RequestOp(
                    request_delete_range=known.DeleteRangeRequest(
                        key=keys.grant, range_end=keys.holder_end
                    )
                )
            ],
            failure=[known.RequestOp(request_range=known.RangeRequest(key=keys.grant))],
        )
        first = attempt.SerializeToString()
        return LockTransactions(
            first, first + queue.SerializeToString(), release.SerializeToString()
        )
