"""A gRPC proxy between a client and its etcd server. It loses and delays requests on demand.

It is the counterpart of :mod:`tests.proxy` for etcd. As there, ``rule`` sees each request of a
unary call. Streams are passed on unchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from typing import Any, NamedTuple

import grpc

from fencedlock.backends.etcd.messages import messages
from tests.proxy import HOLD, HOLD_AND_CUT, LOSE, LOSE_REPLY

_STREAMS = ("Watch", "LeaseKeepAlive")


class Call(NamedTuple):
    """One request of a unary call."""

    method: str
    body: bytes


Rule = Callable[[Call], str | None]


class EtcdProxy:
    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint)
        self.rule: Rule = lambda request: None
        self.requests: list[Call] = []
        self.held: list[tuple[None, Call]] = []
        self.arrived = threading.Condition()
        self._ended = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(64, "etcd-proxy"))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._ended.set()
        self._server.stop(0).wait()
        self._channel.close()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, timeout), "the proxy saw no such packet"

    def deliver(self) -> None:
        """Deliver the held requests now, and return when the server has answered them."""
        held, self.held = self.held, []
        for _, request in held:
            try:
                self._pass_on(request, 10)
            except grpc.RpcError as error:
                assert error.code() in (
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.FAILED_PRECONDITION,
                ), error

    @staticmethod
    def is_call(request: Call, kind: str, *_: bytes) -> bool:
        return kind_of(request) == kind

    @staticmethod
    def mentions(request: Call, word: bytes) -> bool:
        return word in request.body

    @staticmethod
    def is_operation(request: Call) -> bool:
        return kind_of(request) is not None

    def _pass_on(self, request: Call, seconds: float | None) -> bytes:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            request.method, None, None
        )
        return call(request.body, timeout=seconds)

    def answer(self, method: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        request = Call(method, body)
        fate = self.rule(request)
        with self.arrived:
            self.requests.append(request)
            if fate in (HOLD, HOLD_AND_CUT):
                self.held.append((None, request))
            self.arrived.notify_all()
        if fate == HOLD_AND_CUT:
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        if fate == LOSE_REPLY:
            self._pass_on(request, 10)
        if fate in (HOLD, LOSE, LOSE_REPLY):
            while context.is_active() and not self._ended.wait(0.02):
                pass
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        try:
            return self._pass_on(request, context.time_remaining())
        except grpc.RpcError as error:
            context.abort(error.code(), error.details() or "")

    def stream(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            method, None, None
        )
        responses = call(requests, metadata=context.invocation_metadata())

        def give_up() -> None:
            responses.cancel()

        context.add_callback(give_up)
        try:
            yield from responses
        except grpc.RpcError as error:
            context.abort(error.code(), error.details() or "")


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, proxy: EtcdProxy) -> None:
        self._proxy = proxy

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if method.rpartition("/")[2] in _STREAMS:
            return grpc.stream_stream_rpc_method_handler(partial(self._proxy.stream, method))
        return grpc.unary_unary_rpc_method_handler(partial(self._proxy.answer, method))


def kind_of(request: Call) -> str | None:
    """Return the operation of a lock that the request stands for: "acquire", "renew", "release" or
    "withdraw". None for any other request.
    """
    if not request.method.endswith("/Txn"):
        return None
    transaction = messages().TxnRequest.FromString(request.body)
    puts = [
        operation.request_put.key.rpartition(b"/")[2]
        for operation in transaction.success
        if operation.HasField("request_put")
    ]
    deleted = [
        operation.request_delete_range
        for operation in transaction.success
        if operation.HasField("request_delete_range")
    ]
    if b"holder" in puts:
        return "acquire" if b"grant" in puts else "renew"
    if any(request.key.endswith(b"/grant") and request.range_end for request in deleted):
        return "release"
    if (
        any(request.key.endswith(b"/holder") for request in deleted)
        and len(transaction.compare) == 2
    ):
        return "withdraw"
    return None
