"""The inbox: a client's pub/sub channel, which receives a doorbell when a lock is handed over."""

from __future__ import annotations

import logging
import re
import select
import socket
from collections.abc import Callable
from typing import Any

from fencedlock.backends.redis.connections import Connections
from fencedlock.backends.redis.connector import Connector
from fencedlock.backends.redis.scripts import pack
from fencedlock.backends.redis.wire import NOT_NOW, close_copy, limit_waiting
from fencedlock.clock import now_seconds
from fencedlock.core.backend import Listener
from fencedlock.core.roles import ThreadWaker
from fencedlock.errors import BackendError, BackendUnavailableError
from fencedlock.runtime.bell import Bell
from fencedlock.runtime.interrupts import Event, make_mutex, raised_by_handler
from fencedlock.runtime.threads import Worker

logger: logging.Logger = logging.getLogger("fencedlock")

_CHUNK_BYTES = 4096
_MOST_UNREAD_BYTES = 65536
_MESSAGE = re.compile(rb"\*3\r\n\$7\r\nmessage\r\n\$\d+\r\n[^\r]*\r\n\$\d+\r\n([^\r]*)\r\n")
"""Matches a whole message, and captures its content. redis-py's reader costs more than the rest of
a hand-off.
"""
_MESSAGE_LINES = 8
"""The number of parts of one message: its lines, and the empty rest after the last line end."""

SILENCE_SECONDS = 5.0
"""The time of silence after which the server is asked whether it still lives. After the same time
without an answer, the connection is opened anew.
"""

LONGEST_PAUSE_SECONDS = 1.0
"""The longest pause between two attempts to open the connection anew."""

STEADY_SECONDS = 1.0
"""The time for which a connection has to last. One that was cut sooner counts as one more attempt
when the next pause is chosen.
"""

_MOST_TOKEN_DIGITS = 16

REFUSED_PAUSE_SECONDS = 30.0
"""The pause between two attempts if the server refuses, because a permission is missing."""


class Inbox:
    """One pub/sub connection. One of the threads that sleep for a grant reads it, for all of them.

    So a doorbell wakes the thread that it is for without another thread in between, which would
    take as long as the way from the server. When the reader leaves, another sleeping thread becomes
    the reader. A thread of the inbox's own opens the connection, keeps it open, and reads it while
    no thread sleeps.

    Every doorbell is ``claim token abandoned``. The message ``client/owner look`` asks a waiter to
    ask the server again. Messages between a cut and the reconnection are lost, so the listener is
    told of the reconnection, and its waiters send a beat at once.
    """

    def __init__(
        self,
        connections: Connections,
        connector: Connector,
        channel: str,
        timeout_seconds: float,
        may_be_issued: Callable[[int], bool],
    ) -> None:
        self._connections = connections
        self._connector = connector
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._may_be_issued = may_be_issued
        self._listener: Listener | None = None
        self._worker = Worker(self._keep, "fencedlock-inbox")
        self._tried = Event()
        """Set once the connection was opened, or could not be opened."""
        self._keeper = Bell()
        self._closed = False
        self._warned = False
        self._connection: Any = None
        self._opened_at = 0.0
        self._stream: _Stream | None = None
        """The incoming messages, or None while the connection is not open."""
        self._doubted = False
        """True if the inbox may be connected to another server than the calls."""
        # It is reentrant, because a signal handler or a destructor may sleep for a claim, too,
        # while its thread has the mutex.
        self._turn = make_mutex()
        """The thread that has this mutex reads."""
        self._reader: ThreadWaker | None = None
        self._loop: Any = None
        """The event loop that reads, None if threads do."""
        self._sleepers: dict[ThreadWaker, None] = {}
        """The bells of the threads that sleep, including the reader."""

    @property
    def is_open(self) -> bool:
        """True while doorbells can come in."""
        return self._stream is not None

    def open(self, listener: Listener, timeout_seconds: float) -> None:
        """Have the connection opened, and wait for that until the timeout.

        Does nothing if this was done before. If the connection can't be opened, waiters ask the
        server by themselves, and more often. So a server or a proxy without pub/sub costs only
        latency.
        """
        if self._tried.is_set() or self._closed:
            return
        self._listener = listener
        try:
            self._worker.start()
        except RuntimeError:  # the interpreter ends, so there will be no doorbells
            self._tried.set()
        self._tried.wait(timeout_seconds)

    def read_in(self, loop: Any) -> None:
        """Have this event loop read, in place of threads. Called before :meth:`open`."""
        self._loop = loop

    def leave_loop(self) -> None:
        """Have the event loop read no more. Called in its thread, before :meth:`close`."""
        stream = self._stream
        self._closed = True
        if stream is not None and not self._loop.is_closed():
            self._loop.remove_reader(stream.descriptor)

    def _begin_in_loop(self, stream: _Stream) -> None:
        if self._stream is stream and not self._closed:
            self._loop.add_reader(stream.descriptor, self._read_in_loop, stream)

    def _end_if_silent(self, stream: _Stream) -> None:
        # Only the loop uses the connection, because TLS does not stand two threads.
        if self._stream is stream and not self._closed:
            stream.end_if_silent(now_seconds())

    def _read_in_loop(self, stream: _Stream) -> None:
        stream.read_ready()
        if stream.cut:
            self._loop.remove_reader(stream.descriptor)
            self._let_go(stream)

    def close(self, timeout_seconds: float) -> None:
        """Close the connection, and wait for the end of the inbox's thread until the timeout."""
        self._closed = True
        self._keeper.ring()
        stream = self._stream
        if stream is not None:
            stream.wake()
        if self._worker.wait(timeout_seconds):
            self._disconnect()

    def hang_up(self) -> None:
        """End the connection. It is opened anew, to wherever the server's name leads by then."""
        stream = self._stream
        if stream is not None:
            stream.hang_up()

    def doubt(self) -> None:
        """Check that doorbells come from the server of the calls, which may be another one now."""
        if self._stream is not None:
            self._doubted = True
            self._keeper.ring()

    def forget(self) -> None:
        """In a forked child, close the child's copy of the connection.

        Otherwise the server would count a killed parent as listening.
        """
        if self._stream is not None:
            self._stream.close()
        close_copy(self._connection)

    def wait(self, bell: ThreadWaker, timeout_seconds: float) -> None:
        """Sleep until the bell rings or until the timeout.

        Meanwhile, read for all sleeping threads if no other thread does.
        """
        until = now_seconds() + timeout_seconds
        inside = self._turn._is_owned()
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
            while not inside and self._turn._is_owned():
                self._turn.release()  # Ctrl-C came between the acquisition and its try
            bell.rung = False
            if inside and self._stream is not None:
                self._stream.wake()  # this interrupted a reader whose bell may have rung meanwhile
            if self._sleepers:
                self._pass_turn()

    def _pass_turn(self) -> None:
        """Wake a sleeping thread so that it reads, if there is no reader.

        Every thread that may leave others without a reader calls this.
        """
        if self._reader is None and self._stream is not None:
            for bell in self._sleepers.copy():
                bell.nudge()
                return

    def _let_go(self, stream: _Stream) -> None:
        """Drop a stream that is cut, and have the connection opened anew."""
        stream.close()
        if self._stream is stream:
            self._stream = None
            self._keeper.ring()

    # --- the inbox's own thread

    def _keep(self) -> None:
        pause = 0.0
        while not self._closed:
            stream = self._stream
            if stream is None:
                if (
                    self._connection is not None
                    and now_seconds() >= self._opened_at + STEADY_SECONDS
                ):
                    pause = 0.0
                self._disconnect()
                if pause:
                    self._keeper.wait(pause)
                if not self._closed:
                    pause = self._open_anew(pause)
                continue
            self._look_after(stream)
            if stream.cut:
                continue
            if self._doubted:
                self._doubted = False
                self._leave_if_elsewhere(stream)
                continue
            self._keeper.wait(SILENCE_SECONDS)
        self._disconnect()

    def _look_after(self, stream: _Stream) -> None:
        """Read what is there if no thread reads. If a loop reads, check that something comes in."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._end_if_silent, stream)
            except RuntimeError:
                pass  # the loop was closed
            if stream.cut:
                self._keeper.wait(LONGEST_PAUSE_SECONDS)  # until the loop has let go
        elif self._turn.acquire(blocking=False):
            try:
                stream.read_until(self._keeper, now_seconds())
            except Exception:
                logger.exception("fencedlock: unexpected error in the inbox, which goes on")
            finally:
                self._turn.release()
            if stream.cut:
                self._let_go(stream)
            else:
                self._pass_turn()

    def _open_anew(self, pause: float) -> float:
        """Connect. Return how long to pause before the next attempt, if one is needed soon."""
        listener = self._listener
        assert listener is not None
        try:
            self._subscribe(listener)
            self._pass_turn()
            listener.reconnected()
        except BackendUnavailableError as error:
            logger.debug("fencedlock: the inbox could not be opened: %s", error)
        except BackendError as error:
            self._warn(error)
            return REFUSED_PAUSE_SECONDS
        except Exception:
            logger.exception("fencedlock: unexpected error in the inbox, which goes on")
        finally:
            self._tried.set()
        return min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.01)

    def _subscribe(self, listener: Listener) -> None:
        connection = None
        try:
            connection = self._connector()
            connection.socket_timeout = connection.socket_connect_timeout = self._timeout_seconds
            connection.connect()
            connection.send_packed_command([pack("SUBSCRIBE", self._channel)], check_health=False)
            connection.read_response(disable_decoding=True)
            self._connection, self._opened_at = connection, now_seconds()
            stream = _Stream(connection._sock.sock, listener, self._may_be_issued)
            self._stream = stream
            if self._loop is not None:
                stream.wait_for_nothing()
                self._loop.call_soon_threadsafe(self._begin_in_loop, stream)
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
            raise self._connector.connecting_error(error) from error

    def _leave_if_elsewhere(self, stream: _Stream) -> None:
        """Drop the connection if the server to which calls go does not know of it.

        Doorbells from another server tell of grants that this one has not made.
        """
        try:
            _, listeners = self._connections.ask(
                pack("PUBSUB", "NUMSUB", self._channel), self._timeout_seconds
            )
        except BackendUnavailableError:
            self._doubted = True
            self._keeper.wait(LONGEST_PAUSE_SECONDS)
            return
        except (BackendError, TypeError, ValueError):
            return  # without this permission, the scripts can't look either, and always ring
        if listeners == 0 and self._stream is stream:
            logger.debug(
                "fencedlock: the inbox was at another server than the calls, and is opened anew"
            )
            stream.hang_up()
            if self._loop is None:  # otherwise the loop finds out, and lets go
                self._let_go(stream)

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
            logger.warning(
                "fencedlock: doorbells can't be heard, so a hand-off takes up to half a second "
                "instead of milliseconds. The user needs the permissions +subscribe and &%s*: %s",
                self._channel.rpartition(":")[0] + ":",
                error,
            )


class _Stream:
    """The incoming messages of one connection. One thread at a time reads them."""

    def __init__(self, sock: Any, listener: Listener, may_be_issued: Callable[[int], bool]) -> None:
        self.cut: bool = False
        """True once no more messages come in."""
        self._sock = sock
        self._in_loop = False
        self.descriptor: int = sock.fileno()
        """The number by which a selector knows the connection."""
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        self._listener = listener
        self._may_be_issued = may_be_issued
        self._unread = b""
        self._silent_at = now_seconds() + SILENCE_SECONDS
        """The local time until which something has to come in. If nothing does, the server is asked
        whether it lives, or counts as dead if it was asked already.
        """
        self._asked = False
        self._kick, self._kicked = socket.socketpair()
        self._kick.setblocking(False)
        self._poll: Any = None
        limit_waiting(sock, SILENCE_SECONDS)

    def read_until(self, bell: ThreadWaker, until: float) -> None:
        """Read until the bell rings or until this local time. Look at least once.

        Sets :attr:`cut` when the connection has ended.
        """
        try:
            while not self.cut:
                bell.alarm = self.wake
                seconds = 0.0 if bell.rung else min(until, self._silent_at) - now_seconds()
                # A poll object that is in use can't be used by a nested call.
                poll, self._poll = self._poll or self._make_poll(), None
                ready = poll.poll(1000 * max(0.0, seconds))
                bell.alarm, self._poll = None, poll
                for descriptor, _ in ready:
                    if descriptor == self.descriptor:
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
        except (OSError, ValueError) as error:
            if raised_by_handler(error) is not None:
                raise
            logger.debug("fencedlock: the inbox was cut: %s", error)
            self.cut = True
        finally:
            bell.alarm = None

    def wait_for_nothing(self) -> None:
        """Let no read or write on the connection wait, because an event loop reads it."""
        self._in_loop = True
        self._sock.setblocking(False)

    def read_ready(self) -> None:
        """Read what is there, in an event loop. Sets :attr:`cut` when the connection has ended."""
        try:
            self._take_in()
        except NOT_NOW:
            pass
        except (OSError, ValueError) as error:
            logger.debug("fencedlock: the inbox was cut: %s", error)
            self.cut = True

    def end_if_silent(self, now: float) -> None:
        """Ask a server that has been silent whether it lives, and hang up if it was asked before.

        The reader learns of that.
        """
        if now >= self._silent_at:
            try:
                self._break_silence(now)
            except OSError as error:
                logger.debug("fencedlock: the inbox was cut: %s", error)
                self.cut = True
            if self.cut:
                self.hang_up()

    def _make_poll(self) -> Any:
        poll = getattr(select, "poll", _Select)()  # eventlet removes select.poll
        poll.register(self.descriptor, getattr(select, "POLLIN", 0))
        poll.register(self._kicked, getattr(select, "POLLIN", 0))
        return poll

    def close(self) -> None:
        """Close the sockets that wake the reader, because nobody reads the stream any more."""
        self._kick.close()
        self._kicked.close()

    def hang_up(self) -> None:
        """End the connection. Its reader learns of that at once."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the connection has ended already
        self.cut = True
        self.wake()

    def wake(self) -> None:
        """End the poll of the reader, because its bell has rung."""
        try:
            self._kick.send(b".")
        except OSError:
            pass  # the reader will be woken anyway, or is not there any more

    def _break_silence(self, now: float) -> None:
        if self._asked:
            self.cut = True
        else:
            self._asked, self._silent_at = True, now + SILENCE_SECONDS
            self._sock.sendall(pack("PING"))

    def _take_in(self) -> None:
        try:
            received = self._sock.recv(_CHUNK_BYTES)
            if self._pending is not None:
                while self._pending():  # TLS has read more than poll can see
                    received += self._sock.recv(_CHUNK_BYTES)
            if not received:
                self.cut = True
            self._asked, self._silent_at = False, now_seconds() + SILENCE_SECONDS
            self._read(received)
        except BaseException as error:
            if not (self._in_loop and isinstance(error, NOT_NOW)):
                self.cut = True  # what was received may be lost, so all waiters have to ask again
            raise

    def _read(self, received: bytes) -> None:
        if not self._unread:
            lines = received.split(b"\r\n")
            # This is one message, as in most hand-offs.
            if len(lines) == _MESSAGE_LINES and lines[2] == b"message" and not lines[-1]:
                self._deliver(lines[-2])
                return
        unread, end = self._unread + received, 0
        for message in _MESSAGE.finditer(unread):
            self._deliver(message[1])
            end = message.end()
        self._unread = unread[max(end, len(unread) - _MOST_UNREAD_BYTES) :]

    def _deliver(self, message: bytes) -> None:
        words = message.split(b" ")
        if len(words) == 3 and words[1].isdigit() and len(words[1]) <= _MOST_TOKEN_DIGITS:
            claim_id, token = words[0].decode(errors="replace"), int(words[1])
            if self._may_be_issued(token):
                self._listener.doorbell(claim_id, token, words[2] == b"1")
            else:
                # The floor may have been raised, so the waiter asks the server.
                self._listener.look_again(claim_id)
        elif len(words) == 2 and words[1] == b"look":
            self._listener.look_again(words[0].decode(errors="replace"))
        else:
            logger.warning(
                "fencedlock: ignored a message on the inbox that is no doorbell: %r", message[:100]
            )


class _Select:
    """The part of ``select.poll`` that :class:`_Stream` needs, made with ``select.select``."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def register(self, descriptor: Any, _events: int) -> None:
        self._descriptors.append(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        ready, _, _ = select.select(self._descriptors, [], [], timeout_ms / 1000)
        return [(descriptor, 0) for descriptor in ready]
