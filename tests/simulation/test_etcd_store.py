"""Each request to the simulated store has the answer that a real etcd gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="grpcio is not installed")

from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.messages import OLDEST_FIRST, messages
from fencedlock.errors import BackendError
from tests.etcd_servers import EtcdServer, any_etcd
from tests.simulation.etcd_store import EtcdStore, RefusedError

keys = st.sampled_from([b"a", b"b", b"c"])
ends = st.sampled_from([b"", b"b", b"d", b"d"])
values = st.sampled_from([b"", b"1", b"2"])
leases = st.sampled_from([0, 0, 7, 8])
ranges = st.fixed_dictionaries(
    {"key": keys, "range_end": ends},
    optional={
        "limit": st.sampled_from([1, 2]),
        "keys_only": st.booleans(),
        "count_only": st.booleans(),
        "sort": st.just(True),
    },
)
puts = st.fixed_dictionaries({"key": keys, "value": values, "lease": leases})
deletes = st.fixed_dictionaries({"key": keys, "range_end": ends})
compares = st.one_of(
    st.fixed_dictionaries(
        {
            "result": st.integers(0, 3),
            "target": st.sampled_from([0, 1, 2, 4]),
            "key": keys,
            "range_end": ends,
            "number": st.sampled_from([0, 1, 2]),
        }
    ),
    st.fixed_dictionaries(
        {"result": st.integers(0, 3), "target": st.just(3), "key": keys, "value": values}
    ),
)
operations = st.one_of(
    st.tuples(st.just("range"), ranges),
    st.tuples(st.just("put"), puts),
    st.tuples(st.just("put"), puts),
    st.tuples(st.just("delete_range"), deletes),
)
inner = st.fixed_dictionaries(
    {
        "compare": st.lists(compares, max_size=2),
        "success": st.lists(operations, max_size=1),
        "failure": st.lists(operations, max_size=1),
    }
)
transactions = st.fixed_dictionaries(
    {
        "compare": st.lists(compares, max_size=2),
        "success": st.lists(st.one_of(operations, st.tuples(st.just("txn"), inner)), max_size=2),
        "failure": st.lists(operations, max_size=2),
    }
)
one_put = st.builds(
    lambda fields: {"compare": [], "success": [("put", fields)], "failure": []}, puts
)
requests = st.lists(
    st.one_of(
        st.tuples(st.just("range"), ranges),
        st.tuples(st.just("txn"), transactions),
        st.tuples(st.just("txn"), one_put),
        st.tuples(
            st.sampled_from(["grant", "revoke", "keep_alive", "list"]), st.sampled_from([7, 8])
        ),
    ),
    max_size=20,
)
_FIELDS = {0: "version", 1: "create_revision", 2: "mod_revision", 4: "lease"}
_METHODS = {
    "range": calls.RANGE,
    "txn": calls.TXN,
    "grant": calls.LEASE_GRANT,
    "revoke": calls.LEASE_REVOKE,
    "keep_alive": calls.LEASE_KEEP_ALIVE,
    "list": calls.LEASE_TIME_TO_LIVE,
}


def made(kind: str, arguments: Any, since: int) -> Any:
    """Return the message. Revisions in comparisons are relative to ``since``."""
    known = messages()
    if kind == "range":
        fields = dict(arguments)
        order = OLDEST_FIRST if fields.pop("sort", False) else {}
        return known.RangeRequest(**fields, **order)
    if kind == "put":
        return known.PutRequest(**arguments)
    if kind == "delete_range":
        return known.DeleteRangeRequest(**arguments)
    if kind == "txn":
        return known.TxnRequest(
            compare=[_compare(each, since) for each in arguments["compare"]],
            **{
                name: [
                    known.RequestOp(**{f"request_{what}": made(what, more, since)})
                    for what, more in arguments[name]
                ]
                for name in ("success", "failure")
            },
        )
    of_leases = {
        "grant": partial(known.LeaseGrantRequest, TTL=1000),
        "list": partial(known.LeaseTimeToLiveRequest, keys=True),
        "revoke": known.LeaseRevokeRequest,
        "keep_alive": known.LeaseKeepAliveRequest,
    }
    return of_leases[kind](ID=arguments)


def _compare(fields: dict[str, Any], since: int) -> Any:
    fields = dict(fields)
    number = fields.pop("number", None)
    if number is not None:
        target = fields["target"]
        revision = since if number and target in (1, 2) else 0
        fields[_FIELDS[target]] = revision + number
    return messages().Compare(**fields)


def shown(answer: Any, since: int) -> str:
    """Return what the answer says, with revisions relative to ``since``."""
    answer.header.cluster_id = answer.header.member_id = answer.header.raft_term = 0
    for key_values in _all_kvs(answer):
        for kv in key_values:
            kv.create_revision -= since
            kv.mod_revision -= since
    answer.header.revision -= since
    for response in _all_responses(answer):
        for part in ("response_range", "response_put", "response_delete_range", "response_txn"):
            if response.HasField(part):
                getattr(response, part).ClearField("header")
    if hasattr(answer, "keys"):
        found = sorted(answer.keys)
        del answer.keys[:]
        answer.keys.extend(found)
        answer.TTL = min(answer.TTL, 990)
    return str(answer)


def _all_responses(answer: Any) -> Any:
    for response in getattr(answer, "responses", ()):
        yield response
        if response.HasField("response_txn"):
            yield from _all_responses(response.response_txn)


def _all_kvs(answer: Any) -> Any:
    if hasattr(answer, "kvs"):
        yield answer.kvs
    for response in _all_responses(answer):
        if response.HasField("response_range"):
            yield response.response_range.kvs


def once_each(request: Any) -> bool:
    """Return False for a transaction that writes a key twice, which etcd refuses."""
    names = ("success", "failure")
    written: list[bytes] = []

    def look(transaction: Any) -> None:
        for name in names:
            for operation in getattr(transaction, name):
                if operation.HasField("request_put"):
                    written.append(operation.request_put.key)
                elif operation.HasField("request_delete_range"):
                    written.extend([b"a", b"b", b"c"])
                elif operation.HasField("request_txn"):
                    look(operation.request_txn)

    look(request)
    return len(written) == len(set(written))


def test_the_same_requests_have_the_same_answers(own_server: Callable[..., EtcdServer]) -> None:
    real = own_server(any_etcd()).connections()
    known = messages()

    def ask(kind: str, request: Any) -> Any:
        return real.call(_METHODS[kind], request, 30)

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(requests)
    def check(asked: Any) -> None:
        for lease in (7, 8):
            if ask("list", known.LeaseTimeToLiveRequest(ID=lease)).TTL >= 0:
                ask("revoke", known.LeaseRevokeRequest(ID=lease))
        everything = known.DeleteRangeRequest(key=b"a", range_end=b"d")
        ask(
            "txn",
            known.TxnRequest(success=[known.RequestOp(request_delete_range=everything)]),
        )
        since = ask("range", known.RangeRequest(key=b"a")).header.revision
        store = EtcdStore(lambda: 0.0, lambda _events: None)
        store.revision = since
        actions: dict[str, Callable[[Any], Any]] = {
            "range": store.range,
            "txn": store.txn,
            "grant": store.grant,
            "revoke": store.revoke,
            "keep_alive": store.keep_alive,
            "list": store.time_to_live,
        }
        for kind, arguments in asked:
            request = made(kind, arguments, since)
            if kind == "txn" and not once_each(request):
                continue
            try:
                theirs = shown(ask(kind, request), since)
            except BackendError as error:
                theirs = str(error)
            try:
                ours = shown(actions[kind](request), since)
            except RefusedError as error:
                ours = str(error)
                assert ours in theirs, (request, ours, theirs)
                continue
            assert ours == theirs, request

    check()
    real.close()
