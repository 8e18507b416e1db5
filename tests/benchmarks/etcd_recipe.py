"""A faithful port of the mutex of etcd's Go client (client/v3/concurrency), for comparison.

It works in the same way. A session keeps a lease. The key consists of the prefix and the lease. One
transaction makes the key, or reads it, and reads the owner, which is the key with the lowest
``create_revision``. A session that is not the owner looks for the last key before its own, watches
that key from the revision of the answer until it is deleted, and looks again. Unlocking deletes the
key by its name. All watches of a process share one stream.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import grpc

from fencedlock.backends.etcd.connections import (
    DELETE_RANGE,
    LEASE_GRANT,
    RANGE,
    TXN,
    WATCH,
    Method,
)
from fencedlock.backends.etcd.keys import after
from fencedlock.backends.etcd.messages import CREATE, DELETE, EQUAL, messages

M = messages()
_NEWEST_FIRST = {"sort_order": 2, "sort_target": 2, "limit": 1}
_OLDEST_FIRST = {"sort_order": 1, "sort_target": 2, "limit": 1}


def calls(port: int) -> tuple[grpc.Channel, Any]:
    """Return a channel, and a function that makes a callable of a method on it."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def prepare(method: Method) -> Any:
        kind = channel.stream_stream if method is WATCH else channel.unary_unary
        return kind(method.path, method.request.SerializeToString, method.response.FromString)

    return channel, prepare


class RecipeMutex:
    def __init__(self, port: int, prefix: str, lease_seconds: int) -> None:
        self._channel, prepare = calls(port)
        self._txn, self._range, self._delete = prepare(TXN), prepare(RANGE), prepare(DELETE_RANGE)
        # The lease is longer than a run, so nothing has to keep it alive.
        lease = prepare(LEASE_GRANT)(M.LeaseGrantRequest(TTL=lease_seconds)).ID
        self._prefix = f"{prefix}/".encode()
        self._key = self._prefix + b"%x" % lease
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._responses = prepare(WATCH)(iter(self._requests.get, None))
        self._watch_id = 0
        owner = M.RequestOp(
            request_range=M.RangeRequest(
                key=self._prefix, range_end=after(self._prefix), **_OLDEST_FIRST
            )
        )
        self._make = M.TxnRequest(
            compare=[M.Compare(result=EQUAL, target=CREATE, key=self._key, create_revision=0)],
            success=[M.RequestOp(request_put=M.PutRequest(key=self._key, lease=lease)), owner],
            failure=[M.RequestOp(request_range=M.RangeRequest(key=self._key)), owner],
        )

    def lock(self) -> None:
        answer = self._txn(self._make)
        mine = (
            answer.header.revision
            if answer.succeeded
            else answer.responses[0].response_range.kvs[0].create_revision
        )
        owners = answer.responses[1].response_range.kvs
        if not owners or owners[0].create_revision == mine:
            return
        while True:
            before = self._range(
                M.RangeRequest(
                    key=self._prefix,
                    range_end=after(self._prefix),
                    max_create_revision=mine - 1,
                    **_NEWEST_FIRST,
                )
            )
            if not before.kvs:
                break
            self._wait_until_deleted(before.kvs[0].key, before.header.revision)
        assert self._range(M.RangeRequest(key=self._key)).kvs, "the session has ended"

    def unlock(self) -> None:
        self._delete(M.DeleteRangeRequest(key=self._key))

    def _wait_until_deleted(self, key: bytes, revision: int) -> None:
        self._watch_id += 1
        create = M.WatchCreateRequest(key=key, start_revision=revision, watch_id=self._watch_id)
        self._requests.put(M.WatchRequest(create_request=create))
        for response in self._responses:
            if response.watch_id == self._watch_id and any(
                event.type == DELETE for event in response.events
            ):
                break
        self._requests.put(
            M.WatchRequest(cancel_request=M.WatchCancelRequest(watch_id=self._watch_id))
        )
