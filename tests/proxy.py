"""A TCP proxy between a client and its server. It loses and delays packets on demand.

The bytes that a client sends at once count as one request, because our client sends each command or
batch with one write. A test sets ``rule``, which gets each request and returns what happens to it:
``None`` (pass on), ``LOSE_REPLY`` (pass on, but swallow the reply), ``LOSE`` (swallow), ``HOLD``
(keep until :meth:`Proxy.deliver`) or ``HOLD_AND_CUT`` (the same, and close the connection to the
client). If it returns bytes, these are the reply, and the server gets no request.

``reply_rule`` does the same for replies of the server. ``SPLIT`` passes the first bytes on and
keeps the others until :meth:`Proxy.deliver_replies`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial

from fencedlock.backends.redis.scripts import Script, scripts_of

LOSE_REPLY = "lose reply"
LOSE = "lose"
HOLD = "hold"
HOLD_AND_CUT = "hold and cut"
SPLIT = "split"

Rule = Callable[[bytes], str | bytes | None]


class Proxy:
    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.rule: Rule = lambda request: None
        self.reply_rule: Rule = lambda reply: None
        self.requests: list[bytes] = []
        self.held: list[tuple[socket.socket, bytes]] = []
        self.held_replies: list[tuple[socket.socket, bytes]] = []
        self.arrived = threading.Condition()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._deaf: set[socket.socket] = set()
        self._forgotten: set[socket.socket] = set()
        self._swallowed = 0
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @staticmethod
    def is_call(request: bytes, kind: str, *words: bytes) -> bool:
        """Return True if the request is a call of this script."""
        script: Script = getattr(scripts_of(), kind)
        return script.head.encode() in request and all(
            b"\r\n%b\r\n" % word in request for word in words
        )

    @staticmethod
    def mentions(request: bytes, word: bytes) -> bool:
        return word in request

    @staticmethod
    def is_operation(request: bytes) -> bool:
        """Return True if the request is a call of any script."""
        return b"EVAL" in request

    def close(self) -> None:
        hang_up(self._listener)
        self._acceptor.join()  # it may just have accepted one more connection
        for pair in self._pairs:
            for end in pair:
                hang_up(end)

    def cut(self) -> None:
        """Cut every connection."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                hang_up(end)

    def forget(self) -> None:
        """Silence all open connections forever, as if a router on the way had forgotten them. New
        connections work.
        """
        self._forgotten.update(end for pair in self._pairs for end in pair)

    def switch(self, port: int) -> None:
        """Connect new clients to another server. Open connections stay as they are."""
        self._target = port

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, timeout), "the proxy saw no such packet"

    def deliver(self) -> None:
        """Deliver the held requests now, and return when the server has answered them."""
        for server, request in self.held:
            before = self._swallowed
            server.sendall(request)
            self.wait_for(partial(self._has_swallowed_more, before))
        self.held = []

    def _has_swallowed_more(self, than: int) -> bool:
        return self._swallowed > than

    def deliver_replies(self) -> None:
        held, self.held_replies = self.held_replies, []
        for client, reply in held:
            client.sendall(reply)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the server has just died, and another one takes its place
                    hang_up(client)
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.append((client, server))
                threading.Thread(
                    target=self._pump_requests, args=(client, server), daemon=True
                ).start()
                threading.Thread(
                    target=self._pump_replies, args=(client, server), daemon=True
                ).start()

    def _pump_requests(self, client: socket.socket, server: socket.socket) -> None:
        keep = False
        with contextlib.suppress(OSError):
            while request := client.recv(1 << 20):
                if client in self._forgotten:
                    continue
                fate = self.rule(request)
                with self.arrived:
                    self.requests.append(request)
                    if fate in (HOLD, HOLD_AND_CUT):
                        self.held.append((server, request))
                        self._deaf.add(server)
                        keep = True
                    self.arrived.notify_all()
                if fate == HOLD_AND_CUT:
                    hang_up(client)
                if fate == LOSE_REPLY:
                    self._deaf.add(server)
                if fate in (None, LOSE_REPLY):
                    server.sendall(request)
                if isinstance(fate, bytes):
                    client.sendall(fate)
        if not keep:  # held packets still have to arrive, although their sender has hung up
            hang_up(server)

    def _pump_replies(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := server.recv(1 << 20):
                if client in self._forgotten:
                    continue
                fate = self.reply_rule(reply)
                if server in self._deaf:
                    with self.arrived:
                        self._swallowed += 1
                        self.arrived.notify_all()
                elif fate in (HOLD, SPLIT):
                    begun = 3 if fate == SPLIT else 0
                    client.sendall(reply[:begun])
                    with self.arrived:
                        self.held_replies.append((client, reply[begun:]))
                        self.arrived.notify_all()
                elif fate is None:
                    client.sendall(reply)
        if server not in self._deaf:
            hang_up(client)


def hang_up(end: socket.socket) -> None:
    """Close a socket, and wake every thread that waits for it."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
