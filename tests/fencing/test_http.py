"""The HTTP header, the middleware on real sockets, and a client that is frozen past its lease."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import pytest
import requests
import uvicorn

import fencedlock
import fencedlock.asyncio
from fencedlock import FencingToken, NotOwnedError, StaleTokenError
from fencedlock.fencing.http import (
    ENVIRON_KEY,
    HEADER,
    ASGIFencing,
    TokenHeader,
    WSGIFencing,
    format_token,
    parse_token,
    raise_if_stale,
)
from fencedlock.fencing.memory import MonotonicFence
from tests.conftest import eventually
from tests.servers import RedisServer

OLD, NEW = FencingToken("orders/42", 5), FencingToken("orders/42", 6)


class TestHeader:
    def test_it_looks_as_documented(self) -> None:
        assert (
            format_token(FencingToken("orders/42", 1795217931444040))
            == '"orders/42";1795217931444040'
        )

    @pytest.mark.parametrize(
        "lock", ["orders/42", "Bestellung ü", 'a"b\\c%20', "\r\nX: y", "日本", "a,b;c=d", "~!*'()"]
    )
    def test_every_name_travels(self, lock: str) -> None:
        written = format_token(FencingToken(lock, 5))
        assert written.isascii()
        assert written.isprintable()
        assert parse_token(f"  {written} ") == FencingToken(lock, 5)

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "5",
            '"a"',
            '"a";',
            '"a";x',
            '"";5',
            "a;5",
            '"a";-5',
            '"a";5;',
            '"a";1,"b";2',
            '"a";99999999999999999999',
            '"%ff";5',
            '"%00";1',
            '"a%zz";5',
        ],
    )
    def test_anything_else_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match="looks like"):
            parse_token(value)

    def test_what_is_no_token_is_refused(self) -> None:
        with pytest.raises(TypeError):
            format_token(5)  # type: ignore[arg-type]


class Service:
    """A service for WSGI and for ASGI that records the tokens of the orders that it accepts."""

    def __init__(self) -> None:
        self.accepted: list[FencingToken | None] = []
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.entered.set()
        self.gate.wait(20)
        if self.error:
            raise self.error
        start_response("200 OK", [("Content-Type", "text/plain")])
        self.accepted.append(environ.get(ENVIRON_KEY))  # runs when the body is iterated
        yield b"done"

    async def asgi(self, scope: MutableMapping[str, Any], _: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        self.entered.set()
        await asyncio.to_thread(self.gate.wait, 20)
        if self.error:
            raise self.error
        self.accepted.append(scope.get("state", {}).get("fencing_token"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _Threaded(WSGIServer):
    """A server that handles each request in a thread of its own, as services do."""

    def process_request(self, request: Any, client_address: Any) -> None:
        def handle() -> None:
            self.finish_request(request, client_address)
            self.shutdown_request(request)

        threading.Thread(target=handle, daemon=True).start()


@contextlib.contextmanager
def serving_wsgi(app: Any) -> Iterator[str]:
    with make_server("127.0.0.1", 0, app, server_class=_Threaded, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def serving_asgi(app: Any) -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(params=["wsgi", "asgi"])
def serve(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function that serves a Service behind the middleware."""

    def start(service: Service, fence: MonotonicFence | None = None, **options: Any) -> Any:
        if request.param == "wsgi":
            return serving_wsgi(WSGIFencing(service.wsgi, fence, **options))
        return serving_asgi(ASGIFencing(service.asgi, fence, **options))

    return start


def post(url: str, token: FencingToken | None) -> httpx.Response:
    return httpx.post(
        url, headers={} if token is None else {HEADER: format_token(token)}, timeout=20
    )


def _raw_request(
    url: str, method: str, headers: dict[str, str] | None = None
) -> tuple[int, str | None]:
    """Send a request, and return the status and content type of the answer.

    httpx can't be used, because it changes methods to upper case and sends no wrong lengths.
    """
    host, _, port = urlsplit(url).netloc.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    with contextlib.closing(connection):
        connection.request(method, "/", headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"]


class TestMiddleware:
    def test_stale_requests_get_409_and_a_problem(self, serve: Callable[..., Any]) -> None:
        service = Service()
        with serve(service, MonotonicFence()) as url:
            assert [post(url, token).status_code for token in (OLD, OLD, NEW)] == [200, 200, 200]
            refused = post(url, OLD)
        assert refused.status_code == 409
        assert refused.headers["Content-Type"] == "application/problem+json"
        problem = refused.json()
        assert (problem["status"], problem["lock"], problem["presented"], problem["stored"]) == (
            409,
            "orders/42",
            5,
            6,
        )
        assert "is stale" in problem["detail"]
        assert service.accepted == [OLD, OLD, NEW]

    def test_without_a_token_changes_are_refused_and_looks_are_not(
        self, serve: Callable[..., Any]
    ) -> None:
        service = Service()
        with serve(service, MonotonicFence()) as url:
            refused = post(url, None)
            assert (refused.status_code, refused.json()["title"]) == (428, "Precondition Required")
            assert HEADER in refused.json()["detail"]
            assert httpx.get(url).status_code == 200
            post(url, NEW)
            assert httpx.get(url, headers={HEADER: format_token(OLD)}).status_code == 409, (
                "a token that comes is checked"
            )
        assert service.accepted == [None, NEW]

    def test_malformed_and_doubled_headers_get_400(self, serve: Callable[..., Any]) -> None:
        service = Service()
        with serve(service, MonotonicFence()) as url:
            refused = httpx.post(url, headers={HEADER: "5"})
            assert (refused.status_code, refused.json()["status"]) == (400, 400)
            assert httpx.request("LOCK", url).status_code == 428, "all but the safe methods"
            assert httpx.head(url, headers={HEADER: "5"}).status_code == 400
            twice = [(HEADER, format_token(OLD)), (HEADER, format_token(NEW))]
            assert httpx.post(url, headers=twice).status_code == 400
        assert service.accepted == []

    def test_a_token_of_another_lock_gets_400(self, serve: Callable[..., Any]) -> None:
        service = Service()
        with serve(service, MonotonicFence(), resource=lambda _: "the ledger") as url:
            assert post(url, OLD).status_code == 200
            assert post(url, FencingToken("another", 9)).status_code == 400

    def test_methods_can_be_chosen(self, serve: Callable[..., Any]) -> None:
        service = Service()
        with serve(service, MonotonicFence(), methods={"GET"}) as url:
            assert post(url, None).status_code == 200
            assert httpx.get(url).status_code == 428

    @pytest.mark.parametrize("name", ["post", "POST", "Post"])
    def test_the_case_of_methods_makes_no_difference(
        self, name: str, serve: Callable[..., Any]
    ) -> None:
        service = Service()
        with serve(service, MonotonicFence(), methods=[name]) as url:
            assert [httpx.request(method, url).status_code for method in ("POST", "PUT")] == [
                428,
                200,
            ]
            assert _raw_request(url, "post")[0] == 428, "many services take it for POST"
        with serve(service) as url:
            assert _raw_request(url, "get")[0] == 200, "as safe as GET"

    def test_what_the_service_s_own_store_refuses_gets_409(self, serve: Callable[..., Any]) -> None:
        service = Service()
        service.error = StaleTokenError(
            "the row has seen 6", presented=5, stored=6, lock="orders/42"
        )
        with serve(service) as url:
            refused = post(url, OLD)
        assert (refused.status_code, refused.json()["stored"]) == (409, 6)

    def test_no_check_is_overtaken_before_its_request_is_done(
        self, serve: Callable[..., Any]
    ) -> None:
        service = Service()
        with serve(service, MonotonicFence()) as url:
            service.gate.clear()
            answers: dict[str, int] = {}
            slow = threading.Thread(target=lambda: answers.update(slow=post(url, OLD).status_code))
            slow.start()
            assert service.entered.wait(20)
            quick = threading.Thread(
                target=lambda: answers.update(quick=post(url, NEW).status_code)
            )
            quick.start()
            quick.join(0.1)
            assert answers == {}, "the newer one waits for its turn"
            service.gate.set()
            slow.join()
            quick.join()
        assert answers == {"slow": 200, "quick": 200}
        assert service.accepted == [OLD, NEW]


def test_an_answer_that_has_begun_is_not_replaced() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise StaleTokenError("late", presented=1, stored=2)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"fencing-token", format_token(OLD).encode())],
    }
    with pytest.raises(StaleTokenError):
        asyncio.run(ASGIFencing(app)(scope, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_other_protocols_than_http_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(ASGIFencing(app)({"type": "websocket"}, None, None))  # type: ignore[arg-type]
    assert seen == ["websocket"]


def test_wsgi_s_write_and_close_are_honoured() -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"b"])

        def close(self) -> None:
            closed.append(True)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])(b"a")
        return Body()

    begun: list[Any] = []
    environ = {"REQUEST_METHOD": "POST", "HTTP_FENCING_TOKEN": format_token(OLD)}
    body = WSGIFencing(app, MonotonicFence())(environ, lambda *arguments: begun.append(arguments))
    assert (b"".join(body), begun, closed) == (b"ab", [("200 OK", [])], [True])


def test_two_middlewares_of_one_fence_take_turns() -> None:
    order: list[int] = []

    async def both() -> None:
        gate, fence = asyncio.Event(), MonotonicFence()

        async def app(scope: Any, receive: Any, _: Any) -> None:
            assert (await receive())["body"] == b"ab"
            if scope["state"]["fencing_token"] == OLD:
                await gate.wait()
            order.append(int(scope["state"]["fencing_token"]))

        async def request(token: FencingToken) -> None:
            parts: list[MutableMapping[str, Any]] = [
                {"type": "http.request", "body": b"b"},
                {"type": "http.request", "body": b"a", "more_body": True},
            ]

            async def receive() -> MutableMapping[str, Any]:
                return parts.pop()

            headers = [(b"fencing-token", format_token(token).encode())]
            await ASGIFencing(app, fence)(
                {"type": "http", "method": "POST", "headers": headers},
                receive,
                None,  # type: ignore[arg-type]
            )

        async with asyncio.TaskGroup() as group:
            group.create_task(request(OLD))
            await asyncio.sleep(0)
            group.create_task(request(NEW))
            await asyncio.sleep(0)
            gate.set()

    asyncio.run(both())
    assert order == [5, 6]


class Upload:
    """The body of a request, which is sent only when the gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.begun.set()
        self.gate.wait(20)
        yield b"x"


def test_an_upload_that_stalls_holds_nobody_up(serve: Callable[..., Any]) -> None:
    service, upload, answers = Service(), Upload(), []
    with serve(service, MonotonicFence()) as url:
        headers = {HEADER: format_token(OLD), "Content-Length": "1"}
        slow = threading.Thread(
            target=lambda: answers.append(
                httpx.post(url, content=upload, headers=headers, timeout=20).status_code
            )
        )
        slow.start()
        assert upload.begun.wait(20)
        assert post(url, NEW).status_code == 200
        upload.gate.set()
        slow.join()
    assert answers == [409]
    assert service.accepted == [NEW]


def test_wsgi_s_mistakes_are_told() -> None:
    environ = {"REQUEST_METHOD": "POST", "HTTP_FENCING_TOKEN": format_token(OLD)}
    with pytest.raises(AssertionError, match="did not call start_response"):
        WSGIFencing(lambda *_: [])(dict(environ), lambda *_: None)

    def twice(_: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("201 Created", [])
        return []

    with pytest.raises(AssertionError, match="twice"):
        WSGIFencing(twice)(dict(environ), lambda *_: None)


def test_a_token_of_another_lock_than_the_service_s_resource_gets_400(
    serve: Callable[..., Any],
) -> None:
    service, fence = Service(), MonotonicFence()
    fence.check(OLD)
    with pytest.raises(fencedlock.ConfigurationError) as caught:
        fence.check(FencingToken("another", 9), "orders/42")
    service.error = caught.value
    with serve(service) as url:
        assert post(url, FencingToken("another", 9)).status_code == 400


@pytest.mark.parametrize("middleware", [ASGIFencing, WSGIFencing])
def test_a_resource_without_a_fence_is_refused(middleware: Any) -> None:
    with pytest.raises(
        fencedlock.ConfigurationError, match="name the resource in the service's check"
    ):
        middleware(None, resource=lambda _: "x")


@pytest.mark.parametrize("middleware", [ASGIFencing, WSGIFencing])
@pytest.mark.parametrize(
    "methods",
    ["POST", b"PUT", 5, [""], ["POST "], [b"POST"], [None], ["PO ST"], ["POST,PUT"], ["POST\n"]],
)
def test_what_can_be_no_methods_is_refused(middleware: Any, methods: Any) -> None:
    with pytest.raises(fencedlock.ConfigurationError, match="methods must be"):
        middleware(None, methods=methods)


def test_methods_may_come_from_an_iterator() -> None:
    app = WSGIFencing(lambda *_: [], methods=iter(["post"]))  # type: ignore[arg-type]
    for _ in range(2):
        begun: list[Any] = []
        app({"REQUEST_METHOD": "POST"}, lambda *arguments, begun=begun: begun.append(arguments))
        assert begun[0][0] == "428 Precondition Required"


class TestContentLength:
    """The length of the body matters only in WSGI. Servers of ASGI hand over the whole body."""

    def answer(self, body: bytes, length: str, **environ: Any) -> tuple[str, bytes, list[bytes]]:
        seen: list[bytes] = []

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            seen.append(environ["wsgi.input"].read())
            start_response("200 OK", [])
            return []

        begun: list[Any] = []
        request = {
            "REQUEST_METHOD": "POST",
            "HTTP_FENCING_TOKEN": format_token(OLD),
            "CONTENT_LENGTH": length,
            "wsgi.input": io.BytesIO(body),
        }
        answered = WSGIFencing(app, self.fence)(
            {**request, **environ}, lambda *arguments: begun.append(arguments)
        )
        return begun[0][0], b"".join(answered), seen

    @pytest.fixture(autouse=True)
    def new_fence(self) -> None:
        self.fence = MonotonicFence()

    @pytest.mark.parametrize(
        "length",
        [
            "x",
            "-1",
            "+2",
            "2.0",
            "1_0",
            " 2",
            "2, 2",
            "0x2",
            "\u0662",
            "\u00b2",
            "9" * 19,
            "9" * 5000,
        ],
    )
    def test_what_is_no_length_gets_400(self, length: str) -> None:
        status, body, seen = self.answer(b"ab", length)
        problem = json.loads(body)
        assert (status, problem["status"], seen) == ("400 Bad Request", 400, [])
        assert "Content-Length" in problem["detail"]
        self.fence.check(FencingToken(OLD.lock, 1))  # the fence has no token yet

    def test_a_body_that_ends_too_soon_gets_400(self) -> None:
        status, body, seen = self.answer(b"ab", "3")
        assert (status, seen) == ("400 Bad Request", [])
        assert "ended 1 bytes before" in json.loads(body)["detail"]

    @pytest.mark.parametrize(
        ("length", "terminated", "read"),
        [("2", False, b"ab"), ("002", False, b"ab"), ("", True, b"abc"), ("2", True, b"ab")],
    )
    def test_good_ones_are_read(self, length: str, terminated: bool, read: bytes) -> None:
        assert self.answer(b"abc", length, **{"wsgi.input_terminated": terminated}) == (
            "200 OK",
            b"",
            [read],
        )

    def test_a_body_may_come_in_pieces(self) -> None:
        class Pieces(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                return super().read(min(1, size or 0))

        assert self.answer(b"", "2", **{"wsgi.input": Pieces(b"abc")}) == ("200 OK", b"", [b"ab"])

    def test_a_server_s_request_gets_it(self) -> None:
        service = Service()
        with serving_wsgi(WSGIFencing(service.wsgi, MonotonicFence())) as url:
            refused = _raw_request(url, "POST", {HEADER: format_token(OLD), "Content-Length": "-5"})
        assert (refused, service.accepted) == ((400, "application/problem+json"), [])


class TestClients:
    def test_hooks_of_httpx_and_requests(
        self, serve: Callable[..., Any], client: fencedlock.Client, name: str
    ) -> None:
        service, lock = Service(), client.RLock(name)
        send, hooks = TokenHeader(lock), {"response": [raise_if_stale]}
        with serve(service, fence := MonotonicFence()) as url, requests.Session() as session:
            with lock as token:
                with httpx.Client(event_hooks={"request": [send], **hooks}) as http:
                    assert http.post(url).status_code == 200
                assert session.post(url, auth=send).status_code == 200
                assert asyncio.run(self.post_async(url, send)) == 200
                fence.check(FencingToken(name, int(token) + 1))
                with (
                    httpx.Client(event_hooks={"request": [send], **hooks}) as http,
                    pytest.raises(StaleTokenError) as caught,
                ):
                    http.post(url)
                with pytest.raises(StaleTokenError):
                    session.post(url, auth=send, hooks={"response": raise_if_stale})
            with pytest.raises(NotOwnedError):
                session.post(url, auth=send)
            with pytest.raises(TypeError, match="a lock or a FencingToken"):
                TokenHeader("orders/42")  # type: ignore[arg-type]
            assert session.post(url, auth=TokenHeader(token)).status_code == 409
        assert (caught.value.presented, caught.value.stored, caught.value.token) == (
            int(token),
            int(token) + 1,
            token,
        )
        assert service.accepted == [token] * 3

    @pytest.mark.parametrize("cls", ["Lock", "FairLock"])
    def test_a_hook_takes_a_lock_of_any_class(
        self, cls: str, client: fencedlock.Client, name: str
    ) -> None:
        async def main() -> None:
            lock = getattr(fencedlock.asyncio, cls)(name, client=client)
            async with lock as token:
                request = TokenHeader(lock)(httpx.Request("GET", "http://localhost"))
                assert request.headers[HEADER] == format_token(token)

        asyncio.run(main())
        with getattr(client, cls)(name):
            lock = client.Lock(f"{name}/2")
            with lock:
                request = TokenHeader(lock)(httpx.Request("GET", "http://localhost"))
                assert request.headers[HEADER] == format_token(lock.token)

    async def post_async(self, url: str, send: TokenHeader) -> int:
        async with httpx.AsyncClient(auth=send) as http:
            response = await http.post(url)
            raise_if_stale(response)
            return response.status_code

    def test_other_conflicts_are_none_of_ours(self) -> None:
        raise_if_stale(httpx.Response(200))
        raise_if_stale(httpx.Response(409, text="edit conflict"))
        for content in (
            b"no json",
            b"[]",
            b'{"type": "urn:fencedlock:stale-token", "lock": 5, "presented": "x"}',
        ):
            raise_if_stale(
                httpx.Response(
                    409, content=content, headers={"Content-Type": "Application/Problem+JSON"}
                )
            )
        raise_if_stale(
            httpx.Response(
                409,
                content=json.dumps({"type": "about:blank"}),
                headers={"Content-Type": "application/problem+json"},
            )
        )


def order_while_frozen(parent: Connection, lock_url: str, name: str, service_url: str) -> None:
    with (
        fencedlock.connect(lock_url, ttl=0.4) as client,
        contextlib.suppress(fencedlock.LockLostError),
        client.FairLock(name) as token,
    ):
        parent.send(int(token))
        parent.recv()
        response = httpx.post(service_url, headers={HEADER: format_token(token)}, timeout=20)
        parent.send((response.status_code, response.json()))


def test_a_client_that_was_frozen_past_its_lease_gets_409(
    serve: Callable[..., Any], server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    service = Service()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with serve(service, MonotonicFence()) as url:
        frozen = spawn.Process(
            target=order_while_frozen, args=(theirs, server.url, name, url), daemon=True
        )
        frozen.start()
        assert ours.poll(60)
        stale = ours.recv()
        assert frozen.pid is not None
        os.kill(frozen.pid, signal.SIGSTOP)
        with client.FairLock(name) as token:  # as soon as the frozen client's lease has ended
            assert post(url, token).status_code == 200
            os.kill(frozen.pid, signal.SIGCONT)
            ours.send("go on")
            assert ours.poll(60)
            status, problem = ours.recv()
        frozen.join()
    assert (status, problem["presented"], problem["stored"]) == (409, stale, int(token))
    assert service.accepted == [token]
