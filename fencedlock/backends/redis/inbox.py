"""The inbox: a client's pub/sub channel, where a release rings when it hands a lock over."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

from fencedlock.backends.base import Listener
from fencedlock.backends.redis.connections import Connector, close_copy, limit_waiting
from fencedlock.backends.redis.scripts import pack
from fencedlock.errors import BackendError, BackendUnavailableError

logger: logging.Logger = logging.getLogger("fencedlock")

_CHUNK_BYTES = 4096
_MOST_UNREAD_BYTES = 65536
_MESSAGE = re.compile(rb"\*3\r\n\$7\r\nmessage\r\n\$\d+\r\n[^\r]*\r\n\$\d+\r\n([^\r]*)\r\n")
"""A whole message. redis-py's reader costs more than the rest of a hand-off, and here nothing else is of interest."""

SILENCE_SECONDS = 5.0
"""An inbox so long without a word is asked whether it still lives; so long again without an answer, it is opened anew."""

LONGEST_PAUSE_SECONDS = 1.0
"""Between two attempts to open it anew."""

REFUSED_PAUSE_SECONDS = 30.0
"""The same when the server refuses, for want of a permission."""


class Inbox:
    """One pub/sub connection and the thread that reads it.

    Every doorbell is ``claim token abandoned``; ``claim look`` asks a waiter to look again. Between a cut and the
    reconnection they are lost: so the listener is told, and its waiters beat at once.
    """

    def __init__(self, connector: Connector, channel: str, timeout_seconds: float) -> None:
        self._connector = connector
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._opening = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._connection: Any = None
        self._warned = False

    def open(self, listener: Listener) -> None:
        """Subscribe, and return once the server has confirmed it. Does nothing when that is done.

        Raises BackendUnavailableError when the server does not answer.
        """
        if self._thread is not None:
            return
        with self._opening:
            if self._thread is None and not self._closed.is_set():
                try:
                    self._connection = self._subscribe()
                except BackendUnavailableError:
                    raise
                except BackendError as error:
                    self._warn(error)  # a missing permission costs latency only
                thread = threading.Thread(target=self._read, args=(listener,), name="fencedlock-inbox", daemon=True)
                self._thread = thread  # first: Ctrl-C after the start must not lead to a second reader
                try:
                    thread.start()
                except RuntimeError:
                    self._thread = None
                    raise

    def close(self) -> None:
        """Stop reading, and wait until the thread has ended."""
        self._closed.set()
        with self._opening:
            thread = self._thread
        sock = getattr(self._connection, "_sock", None)
        if sock is not None:
            try:
                sock.shutdown(2)  # wakes the reader
            except OSError:
                pass
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """In a forked child: close the child's copy of the connection, or the server would count a killed parent as listening."""
        close_copy(self._connection)

    def _subscribe(self) -> Any:
        connection = self._connector()
        try:
            connection.socket_timeout = connection.socket_connect_timeout = self._timeout_seconds
            connection.connect()
            connection.send_packed_command([pack("SUBSCRIBE", self._channel)], check_health=False)
            connection.read_response(disable_decoding=True)
        except Exception as error:
            connection.disconnect()
            raise self._connector.error_for(error) from error
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _read(self, listener: Listener) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            if self._connection is None:
                try:
                    self._connection = self._subscribe()
                except BackendUnavailableError:
                    pause = min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.01)
                    continue
                except BackendError as error:
                    self._warn(error)
                    pause = REFUSED_PAUSE_SECONDS
                    continue
                pause = 0.0
                listener.reconnected()
            try:
                self._read_until_cut(self._connection, listener)
            except Exception as error:
                logger.debug("the inbox was cut: %s", error)
            self._connection.disconnect()
            self._connection = None

    def _warn(self, error: BackendError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the inbox can't be opened, so hand-offs wait for beats, seconds instead of milliseconds: %s", error)

    def _read_until_cut(self, connection: Any, listener: Listener) -> None:
        sock = connection._sock.sock
        limit_waiting(sock, SILENCE_SECONDS)
        unread, asked = b"", False
        while True:
            try:
                received = sock.recv(_CHUNK_BYTES)
            except (TimeoutError, BlockingIOError):
                if asked:
                    return
                sock.sendall(pack("PING"))
                asked = True
                continue
            if not received:
                return
            asked = False
            unread += received
            end = 0
            for message in _MESSAGE.finditer(unread):
                self._deliver(message[1], listener)
                end = message.end()
            unread = unread[max(end, len(unread) - _MOST_UNREAD_BYTES) :]

    @staticmethod
    def _deliver(message: bytes, listener: Listener) -> None:
        claim_id, _, words = message.decode(errors="replace").partition(" ")
        token, _, abandoned = words.partition(" ")
        if token.isdecimal():
            listener.doorbell(claim_id, int(token), abandoned=abandoned == "1")
        elif words == "look":
            listener.look_again(claim_id)
        else:
            logger.warning("ignored a message on the inbox that is no doorbell: %r", message[:100])
