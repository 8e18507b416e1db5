"""The inbox: a client's pub/sub channel, where a release rings when it hands a lock over."""

from __future__ import annotations

import logging
import re
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from fencedlock.backends.base import Listener
from fencedlock.backends.redis.connections import Connector, close_copy, limit_waiting
from fencedlock.backends.redis.scripts import pack
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendError, BackendUnavailableError
from fencedlock.waiting import Bell

logger: logging.Logger = logging.getLogger("fencedlock")

_CHUNK_BYTES = 4096
_MOST_UNREAD_BYTES = 65536
_MESSAGE = re.compile(rb"\*3\r\n\$7\r\nmessage\r\n\$\d+\r\n[^\r]*\r\n\$\d+\r\n([^\r]*)\r\n")
"""A whole message, and what it says. redis-py's reader costs more than the rest of a hand-off does."""
_MESSAGE_LINES = 8
"""The lines of one message, and what follows the last one's end: nothing."""

SILENCE_SECONDS = 5.0
"""An inbox so long without a word is asked whether it still lives; so long again without an answer, it is opened anew."""

LONGEST_PAUSE_SECONDS = 1.0
"""Between two attempts to open it anew."""

STEADY_SECONDS = 1.0
"""A connection that was cut sooner counts as one more attempt."""

REFUSED_PAUSE_SECONDS = 30.0
"""The same when the server refuses, for want of a permission."""


class Inbox:
    """One pub/sub connection. One of the threads that sleep for a grant reads it, for all of them.

    So a doorbell wakes the thread that it is for without another one between, which would take as long as the way from the
    server. When the reader goes, another sleeper takes its turn. A thread of the inbox's own keeps the connection open, and
    looks after it while nobody sleeps.

    Every doorbell is ``claim token abandoned``; ``claim look`` asks a waiter to look again. Between a cut and the
    reconnection they are lost: so the listener is told, and its waiters beat at once.
    """

    def __init__(self, connector: Connector, channel: str, timeout_seconds: float) -> None:
        self._connector = connector
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._opening = threading.Lock()
        self._thread: threading.Thread | None = None
        self._keeper = Bell()
        self._closed = False
        self._warned = False
        self._connection: Any = None
        self._opened_at = 0.0
        self._stream: _Stream | None = None
        """What comes in; None while nothing can."""
        self._turn = threading.RLock()  # reentrant: in the middle of it, a signal handler or a destructor may sleep for a claim too
        """Whoever has it reads."""
        self._reader: Bell | None = None
        self._sleepers: dict[Bell, None] = {}
        """Those who wait, the reader among them."""

    def open(self, listener: Listener) -> None:
        """Subscribe, and return once the server has confirmed it. Does nothing when that is done.

        Raises BackendUnavailableError when the server does not answer.
        """
        if self._thread is not None:
            return
        with self._opening:
            if self._thread is None and not self._closed:
                try:
                    self._subscribe(listener)
                except BackendUnavailableError:
                    raise
                except BackendError as error:
                    self._warn(error)  # a missing permission costs latency only
                thread = threading.Thread(target=self._keep, args=(listener,), name="fencedlock-inbox", daemon=True)
                self._thread = thread  # first: Ctrl-C after the start must not lead to a second one
                try:
                    thread.start()
                except RuntimeError:
                    self._thread = None
                    self._disconnect()
                    raise

    def close(self) -> None:
        """Close the connection, and wait until the thread has ended."""
        self._closed = True
        with self._opening:
            thread = self._thread
        self._keeper.ring()
        if thread is not None and thread is not threading.current_thread():
            try:
                thread.join()
            except RuntimeError:
                pass  # Ctrl-C came before it began
        self._disconnect()

    def forget(self) -> None:
        """In a forked child: close the child's copy of the connection, or the server would count a killed parent as listening."""
        if self._stream is not None:
            self._stream.close()
        close_copy(self._connection)

    def wait(self, bell: Bell, timeout_seconds: float) -> None:
        """Sleep until the bell rings, at most so long; meanwhile, read for all who sleep, if nobody else does."""
        until = now_seconds() + timeout_seconds
        inside = self._turn._is_owned()  # type: ignore[attr-defined]
        try:
            self._sleepers[bell] = None
            while not bell.rung and (left := until - now_seconds()) > 0:
                stream = self._stream
                if stream is None or not self._turn.acquire(False):
                    bell.sleep(left)
                    continue
                try:
                    self._reader = bell
                    stream.read_until(bell, until)
                finally:
                    self._reader = None
                    self._turn.release()
                if stream.cut:
                    self._let_go(stream)
        finally:
            self._sleepers.pop(bell, None)  # first, so that no Ctrl-C can come before it
            while not inside and self._turn._is_owned():  # type: ignore[attr-defined]
                self._turn.release()  # Ctrl-C came between the acquisition and its try
            bell.rung = False
            if inside and self._stream is not None:
                self._stream.wake()  # whoever reads further out may have been rung meanwhile
            if self._sleepers:
                self._pass_turn()

    def _pass_turn(self) -> None:
        """Wake a sleeper, so that it reads. Whoever leaves others without a reader does so."""
        if self._reader is None and self._stream is not None:
            for bell in self._sleepers.copy():
                bell.nudge()
                return

    def _let_go(self, stream: _Stream) -> None:
        """The stream is cut: have the connection opened anew."""
        stream.close()
        if self._stream is stream:
            self._stream = None
            self._keeper.ring()

    # --- the inbox's own thread

    def _keep(self, listener: Listener) -> None:
        pause = 0.0
        while not self._closed:
            stream = self._stream
            if stream is None:
                if self._connection is not None and now_seconds() >= self._opened_at + STEADY_SECONDS:
                    pause = 0.0
                self._disconnect()
                self._keeper.wait(pause)
                if not self._closed:
                    pause = self._reopen(listener, pause)
                continue
            if self._turn.acquire(blocking=False):  # nobody reads: see what is there
                try:
                    stream.read_until(self._keeper, now_seconds())
                finally:
                    self._turn.release()
                if stream.cut:
                    self._let_go(stream)
                self._pass_turn()
            self._keeper.wait(SILENCE_SECONDS)
        self._disconnect()

    def _reopen(self, listener: Listener, pause: float) -> float:
        """Connect anew; how long to pause before the next attempt, should there have to be one soon."""
        try:
            self._subscribe(listener)
        except BackendUnavailableError:
            pass
        except BackendError as error:
            self._warn(error)
            return REFUSED_PAUSE_SECONDS
        else:
            self._pass_turn()
            listener.reconnected()
        return min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.01)

    def _subscribe(self, listener: Listener) -> None:
        connection = self._connector()
        try:
            connection.socket_timeout = connection.socket_connect_timeout = self._timeout_seconds
            connection.connect()
            connection.send_packed_command([pack("SUBSCRIBE", self._channel)], check_health=False)
            connection.read_response(disable_decoding=True)
            self._stream = _Stream(connection._sock.sock, listener)
            self._connection, self._opened_at = connection, now_seconds()
        except Exception as error:
            connection.disconnect()
            raise self._connector.error_for(error) from error
        except BaseException:
            connection.disconnect()
            raise

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _warn(self, error: BackendError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the inbox can't be opened, so hand-offs wait for beats, seconds instead of milliseconds: %s", error)


class _Stream:
    """What comes in on one connection; one thread at a time reads it."""

    def __init__(self, sock: Any, listener: Listener) -> None:
        self.cut: bool = False
        """True once nothing comes in any more."""
        self._sock = sock
        self._descriptor: int = sock.fileno()
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        self._listener = listener
        self._unread = b""
        self._silent_at = now_seconds() + SILENCE_SECONDS
        """If nothing comes in until then, the server is asked whether it lives, or was asked and does not."""
        self._asked = False
        self._kick, self._kicked = socket.socketpair()
        self._kick.setblocking(False)
        self._poll: select.poll | None = None
        limit_waiting(sock, SILENCE_SECONDS)

    def read_until(self, bell: Bell, until: float) -> None:
        """Read until the bell rings, at most until then; look at least once. Sets :attr:`cut` when the connection has ended."""
        try:
            while not self.cut:
                bell.alarm = self.wake
                seconds = 0.0 if bell.rung else min(until, self._silent_at) - now_seconds()
                poll, self._poll = self._poll or self._make_poll(), None  # one that is in use can't be used again inside
                ready = poll.poll(1000 * max(0.0, seconds))
                bell.alarm, self._poll = None, poll
                for descriptor, _ in ready:
                    if descriptor == self._descriptor:
                        self._take_in()
                    else:
                        self._kicked.recv(_CHUNK_BYTES)
                if bell.rung:
                    return
                now = now_seconds()
                if now >= self._silent_at:
                    self._break_silence(now)
                if now >= until:
                    return
        except Exception as error:
            logger.debug("the inbox was cut: %s", error)
            self.cut = True
        finally:
            bell.alarm = None

    def _make_poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._kicked, select.POLLIN)
        return poll

    def close(self) -> None:
        """Nobody reads it any more."""
        self._kick.close()
        self._kicked.close()

    def wake(self) -> None:
        """End the reader's poll: its bell has rung."""
        try:
            self._kick.send(b".")
        except OSError:
            pass  # it will be woken anyway, or is not there any more

    def _break_silence(self, now: float) -> None:
        if self._asked:
            self.cut = True
        else:
            self._asked, self._silent_at = True, now + SILENCE_SECONDS
            self._sock.sendall(pack("PING"))

    def _take_in(self) -> None:
        received = self._sock.recv(_CHUNK_BYTES)
        if self._pending is not None:
            while self._pending():  # TLS has read more than poll can see
                received += self._sock.recv(_CHUNK_BYTES)
        self.cut = not received
        self._asked, self._silent_at = False, now_seconds() + SILENCE_SECONDS
        if not self._unread:
            lines = received.split(b"\r\n")
            if len(lines) == _MESSAGE_LINES and lines[2] == b"message" and not lines[-1]:  # one message, as on the way of most hand-offs
                self._deliver(lines[-2])
                return
        unread, end = self._unread + received, 0
        for message in _MESSAGE.finditer(unread):
            self._deliver(message[1])
            end = message.end()
        self._unread = unread[max(end, len(unread) - _MOST_UNREAD_BYTES) :]

    def _deliver(self, message: bytes) -> None:
        words = message.split(b" ")
        if len(words) == 3 and words[1].isdigit():
            self._listener.doorbell(words[0].decode(errors="replace"), int(words[1]), words[2] == b"1")
        elif len(words) == 2 and words[1] == b"look":
            self._listener.look_again(words[0].decode(errors="replace"))
        else:
            logger.warning("ignored a message on the inbox that is no doorbell: %r", message[:100])
