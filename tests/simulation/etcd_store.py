"""The part of an etcd cluster that the library uses: keys with revisions, transactions, leases.

It takes and gives the messages of etcd's API. It is compared with a real server, request by
request, in ``test_etcd_store.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fencedlock.backends.etcd.messages import (
    CREATE,
    DELETE,
    EQUAL,
    GREATER,
    LEASE,
    LESS,
    MOD,
    PUT,
    VALUE,
    VERSION,
    messages,
)

LEAST_LEASE_SECONDS = 2
"""The length of the shortest lease that members grant whose elections take 1 s."""

_COMPARED = {
    VERSION: "version",
    CREATE: "create_revision",
    MOD: "mod_revision",
    VALUE: "value",
    LEASE: "lease",
}


class RefusedError(Exception):
    """The cluster refuses a request. The text is that of etcd."""


class StoredLease:
    """A lease, and the keys that depend on it."""

    def __init__(self, seconds: int, ends_at: float) -> None:
        self.seconds = seconds
        self.ends_at = ends_at
        self.keys: set[bytes] = set()


class EtcdStore:
    """What all members of a cluster agree about."""

    def __init__(
        self, now: Callable[[], float], changed: Callable[[list[Any]], object], first_id: int = 1
    ) -> None:
        self._now = now
        self._changed = changed
        """Called with the events of each transaction that has written anything."""
        self.revision: int = 1
        self.kvs: dict[bytes, Any] = {}
        self.leases: dict[int, StoredLease] = {}
        self._next_id = first_id
        self._events: list[Any] = []

    # --- keys

    def range(self, request: Any) -> Any:
        answer = messages().RangeResponse()
        self._range(request, answer)
        answer.header.revision = self.revision
        return answer

    def txn(self, request: Any) -> Any:
        """Carry out a transaction, all of it or nothing."""
        path = self._path(request)
        self._check_leases(path)
        answer = messages().TxnResponse()
        self._events = []
        self._do(path, answer)
        self._publish()
        answer.header.revision = self.revision
        return answer

    def _publish(self) -> None:
        events, self._events = self._events, []
        if events:
            self.revision += 1
            self._changed(events)

    def _path(self, request: Any) -> tuple[bool, list[tuple[str, Any]]]:
        """Return which operations are going to be done. All comparisons come before all writes."""
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations: list[tuple[str, Any]] = []
        for operation in request.success if succeeded else request.failure:
            kind = operation.WhichOneof("request")
            inner = getattr(operation, kind)
            operations.append((kind, self._path(inner) if kind == "request_txn" else inner))
        return succeeded, operations

    def _holds(self, compare: Any) -> bool:
        found = self._between(compare.key, compare.range_end)
        if not found:
            if compare.target == VALUE:
                return False
            found = [messages().KeyValue()]
        name = _COMPARED[compare.target]
        wanted = getattr(compare, name)
        return all(_compare(getattr(kv, name), compare.result, wanted) for kv in found)

    def _check_leases(self, path: tuple[bool, list[tuple[str, Any]]]) -> None:
        for kind, operation in path[1]:
            if kind == "request_txn":
                self._check_leases(operation)
            elif kind == "request_put" and operation.lease and operation.lease not in self.leases:
                raise RefusedError("etcdserver: requested lease not found")

    def _do(self, path: tuple[bool, list[tuple[str, Any]]], answer: Any) -> None:
        answer.succeeded = path[0]
        for kind, operation in path[1]:
            response = answer.responses.add()
            if kind == "request_range":
                self._range(operation, response.response_range)
            elif kind == "request_put":
                self._put(operation)
                response.response_put.SetInParent()
            elif kind == "request_delete_range":
                found = self._between(operation.key, operation.range_end)
                for kv in found:
                    self._delete(kv.key)
                response.response_delete_range.SetInParent()
                response.response_delete_range.deleted = len(found)
            else:
                response.response_txn.SetInParent()
                self._do(operation, response.response_txn)

    def _between(self, key: bytes, range_end: bytes) -> list[Any]:
        if not range_end:
            found = self.kvs.get(key)
            return [] if found is None else [found]
        return [self.kvs[each] for each in sorted(self.kvs) if key <= each < range_end]

    def _range(self, request: Any, answer: Any) -> None:
        found = self._between(request.key, request.range_end)
        answer.SetInParent()
        answer.count = len(found)
        if request.count_only:
            return
        if request.sort_order:
            assert (request.sort_order, request.sort_target) == (1, 2), "by create_revision, rising"
            found = sorted(found, key=lambda kv: kv.create_revision)
        if request.limit and len(found) > request.limit:
            answer.more, found = True, found[: request.limit]
        answer.kvs.extend(found)
        if request.keys_only:
            for kv in answer.kvs:
                kv.ClearField("value")

    def _put(self, request: Any) -> None:
        revision, before = self.revision + 1, self.kvs.get(request.key)
        kv = messages().KeyValue(
            key=request.key,
            value=request.value,
            lease=request.lease,
            mod_revision=revision,
            create_revision=revision if before is None else before.create_revision,
            version=1 if before is None else before.version + 1,
        )
        if before is not None and before.lease:
            self.leases[before.lease].keys.discard(request.key)
        if request.lease:
            self.leases[request.lease].keys.add(request.key)
        self.kvs[request.key] = kv
        self._events.append(messages().Event(type=PUT, kv=kv))

    def _delete(self, key: bytes) -> None:
        kv = self.kvs.pop(key)
        if kv.lease:
            self.leases[kv.lease].keys.discard(key)
        gone = messages().KeyValue(key=key, mod_revision=self.revision + 1)
        self._events.append(messages().Event(type=DELETE, kv=gone))

    # --- leases

    def grant(self, request: Any) -> Any:
        lease_id = request.ID
        if not lease_id:
            lease_id, self._next_id = self._next_id, self._next_id + 1
        if lease_id in self.leases:
            raise RefusedError("etcdserver: lease already exists")
        seconds = max(request.TTL, LEAST_LEASE_SECONDS)
        self.leases[lease_id] = StoredLease(seconds, self._now() + seconds)
        answer = messages().LeaseGrantResponse(ID=lease_id, TTL=seconds)
        answer.header.revision = self.revision
        return answer

    def revoke(self, request: Any) -> Any:
        if request.ID not in self.leases:
            raise RefusedError("etcdserver: requested lease not found")
        self.end_lease(request.ID)
        answer = messages().LeaseRevokeResponse()
        answer.header.revision = self.revision
        return answer

    def end_lease(self, lease_id: int) -> None:
        """Delete a lease, and all keys that depend on it, at one revision."""
        for key in sorted(self.leases[lease_id].keys):
            self._delete(key)
        del self.leases[lease_id]
        self._publish()

    def keep_alive(self, request: Any) -> Any:
        lease = self.leases.get(request.ID)
        answer = messages().LeaseKeepAliveResponse(ID=request.ID)
        answer.header.revision = self.revision
        if lease is not None:
            lease.ends_at = self._now() + lease.seconds
            answer.TTL = lease.seconds
        return answer

    def time_to_live(self, request: Any) -> Any:
        lease = self.leases.get(request.ID)
        answer = messages().LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        answer.header.revision = self.revision
        if lease is not None:
            answer.TTL = int(lease.ends_at - self._now())
            answer.grantedTTL = lease.seconds
            if request.keys:
                answer.keys.extend(sorted(lease.keys))
        return answer

    def over(self) -> list[int]:
        """Return the leases whose time has run out."""
        now = self._now()
        return [lease_id for lease_id, lease in self.leases.items() if lease.ends_at <= now]

    def extend_all(self) -> None:
        """Give each lease a whole term, as a new leader does."""
        for lease in self.leases.values():
            lease.ends_at = self._now() + lease.seconds


def _compare(found: Any, result: int, wanted: Any) -> bool:
    if result == EQUAL:
        return bool(found == wanted)
    if result == GREATER:
        return bool(found > wanted)
    if result == LESS:
        return bool(found < wanted)
    return bool(found != wanted)
