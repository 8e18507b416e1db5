"""The calls that one event loop makes on one connection, one after another without waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeAlias

from fencedlock.backends.redis.connections import LEASH_SECONDS, RESTED_SECONDS, Connections
from fencedlock.backends.redis.wire import NOT_NOW, SIGNS, Wire
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError, FencedLockError

OnReply: TypeAlias = Callable[[Any, int], object]
"""Receives the reply, and how often the question was sent.

The reply is a line with its sign and its line end, an exception of the client package that the
server has answered, or one of ours if there was no answer.
"""

_NEVER = float("inf")
_CHUNK_BYTES = 1 << 16
_MOST_UNREAD_BYTES = 1 << 17


class Question:
    """A packed command, and who is told of the reply. ``seconds`` is how long it may take.

    ``make`` packs the command. It is called again for a connection that was opened meanwhile,
    because that may lead to another server, which has to be told of higher floors. Without
    ``on_reply``, the reply and how often the command was sent are the result of :attr:`future`.
    """

    __slots__ = ("asked_at", "future", "give_up_at", "make", "on_reply", "sent")

    def __init__(
        self,
        make: Callable[[], bytes],
        asked_at: float,
        seconds: float,
        *,
        on_reply: OnReply | None = None,
        future: asyncio.Future[tuple[Any, int]] | None = None,
    ) -> None:
        self.make: Callable[[], bytes] = make
        self.asked_at: float = asked_at
        self.give_up_at: float = asked_at + seconds
        self.on_reply: OnReply | None = on_reply
        self.future: asyncio.Future[tuple[Any, int]] | None = future
        self.sent: int = 0

    @property
    def is_open(self) -> bool:
        """True until somebody was told something, or while somebody waits for the future."""
        return self.on_reply is not None or (self.future is not None and not self.future.done())

    def tell(self, reply: Any) -> None:
        """Give the reply to whom it is for, unless it came too late."""
        future = self.future
        if future is None:
            on_reply, self.on_reply = self.on_reply, None
            if on_reply is not None:
                on_reply(reply, self.sent)
        elif not future.done():
            if type(reply) is bytes:
                future.set_result((reply, self.sent))
            elif not future.get_loop().is_closed():
                if isinstance(reply, FencedLockError):
                    future.set_exception(reply)
                else:
                    future.set_result((reply, self.sent))


class Pipe:
    """One connection, which one event loop reads and writes.

    Questions are sent when they are asked, and answers come in the same order. A thread opens the
    connection when it is needed. If it breaks, what was not answered is sent again once, because
    everything that the library sends may be repeated, and the server may have closed a connection
    that was idle.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
        threads: Executor,
        silence_seconds: float,
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._threads = threads
        self._silence_seconds = silence_seconds
        """The time without an answer after which the connection is given up."""
        self._wire: Wire | None = None
        self._sock: Any = None
        self._descriptor = -1
        self._pending: Callable[[], int] | None = None
        self._opening = False
        self._asked: deque[Question] = deque()
        """The questions that were sent on the present connection, and not answered yet."""
        self._backlog: deque[Question] = deque()
        """The questions that are to be sent once the connection is open."""
        self._unread = b""
        self._unsent = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER
        self._heard_at = 0.0
        """When the connection was opened, or its last answered question asked, in local time."""
        self._leash_at = _NEVER
        """The local time by which a question on a connection that was idle has to be answered."""
        self._closed = False

    def ask(self, question: Question) -> None:
        """Send the command of a question, which is told of the reply within its time."""
        if question.give_up_at < self._timer_at:
            self._wake_by(question.give_up_at, question.asked_at)
        if self._wire is None:
            self._backlog.append(question)
            self._open()
            return
        if not self._asked and question.asked_at - self._heard_at > RESTED_SECONDS:
            # Something on the way may have forgotten the connection.
            self._leash_at = question.asked_at + LEASH_SECONDS
            if self._leash_at < self._timer_at:
                self._wake_by(self._leash_at, question.asked_at)
        self._send(question)

    @property
    def busy(self) -> bool:
        """True while there are questions without an answer."""
        return bool(self._asked or self._backlog)

    def close(self, *, in_loop: bool = True) -> None:
        """Close the connection. What was not answered fails."""
        self._closed = True
        if in_loop and self._timer is not None:
            self._timer.cancel()
        self._leave(in_loop=in_loop)
        error = BackendUnavailableError("the event loop's connection to the lock server was closed")
        self._fail(self._asked, error)
        self._fail(self._backlog, error)

    # --- writing

    def _send(self, question: Question) -> None:
        packed = question.make()
        question.sent += 1
        self._asked.append(question)
        if self._unsent:
            self._unsent += packed
            return
        try:
            size = self._sock.send(packed)
        except NOT_NOW:
            size = 0
        except OSError as error:
            self._loop.call_soon(self._cut, self._wire, error)
            return
        if size < len(packed):
            self._unsent += packed[size:]
            self._loop.add_writer(self._descriptor, self._write_on, self._wire)

    def _write_on(self, wire: Wire | None) -> None:
        if wire is not self._wire:
            return
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except NOT_NOW:
            return
        except OSError as error:
            self._cut(wire, error)
            return
        self._loop.remove_writer(self._descriptor)

    # --- reading

    def _read(self) -> None:
        wire = self._wire
        try:
            data = self._sock.recv(_CHUNK_BYTES)
            while self._pending is not None and self._pending():
                data += self._sock.recv(_CHUNK_BYTES)  # TLS has read more than the selector sees
        except NOT_NOW:
            return
        except OSError as error:
            self._cut(wire, error)
            return
        if not data:
            self._cut(wire, ConnectionResetError("Connection closed by server."))
            return
        self._leash_at = _NEVER
        asked = self._asked
        # This is one answer, as in most reads.
        if (
            not self._unread
            and asked
            and data[:1] in SIGNS
            and data[-2:] == b"\r\n"
            and data.find(b"\n") == len(data) - 1
        ):
            question = asked.popleft()
            self._heard_at = question.asked_at
            question.tell(data)
            return
        self._take_in(wire, data)

    def _take_in(self, wire: Wire | None, data: bytes) -> None:
        assert wire is not None
        *lines, self._unread = (self._unread + data).split(b"\r\n")
        try:
            if len(self._unread) > _MOST_UNREAD_BYTES:
                raise ValueError("a line without an end")
            for line in lines:
                if not self._asked:
                    raise ValueError(f"an answer that nobody has asked for: {line!r:.200}")
                reply = wire.reply(line)
                question = self._asked.popleft()
                self._heard_at = question.asked_at
                question.tell(reply)
                if wire is not self._wire:
                    return
        except ValueError as error:
            self._cut(wire, error)

    # --- the connection

    def _open(self) -> None:
        if self._opening or self._closed:
            return
        self._opening = True
        seconds = max(question.give_up_at for question in self._backlog) - now_seconds()
        try:
            opened = self._threads.submit(self._connections.take_new, seconds)
        except RuntimeError as error:  # the interpreter ends
            self._opening = False
            self._fail(self._backlog, BackendUnavailableError(f"no thread can be started: {error}"))
            return
        asyncio.wrap_future(opened, loop=self._loop).add_done_callback(self._opened)

    def _opened(self, opened: asyncio.Future[Wire]) -> None:
        self._opening = False
        if opened.cancelled():
            return
        error = opened.exception()
        if self._closed:
            if error is None:
                self._connections.drop(opened.result())
            return
        if error is not None:
            self._fail(self._backlog, error)
            return
        wire = opened.result()
        try:
            wire.sock.setblocking(False)
            self._loop.add_reader(wire.sock.fileno(), self._read)
        except (OSError, ValueError) as failure:  # it was ended meanwhile
            self._connections.drop(wire)
            self._fail(self._backlog, self._connections.refusal(failure))
            return
        self._wire, self._sock, self._descriptor = wire, wire.sock, wire.sock.fileno()
        self._pending = getattr(wire.sock, "pending", None)
        self._heard_at = now_seconds()
        backlog, self._backlog = self._backlog, deque()
        for question in backlog:
            if question.is_open:
                self._send(question)

    def _cut(self, wire: Wire | None, error: Exception) -> None:
        """Give the connection up after this error. Send its questions again, but only once."""
        if wire is None or wire is not self._wire:
            return
        self._leave(in_loop=True)
        asked, self._asked = self._asked, deque()
        garbled = isinstance(error, ValueError)
        refusal = self._connections.refusal(error)
        now = now_seconds()
        for question in asked:
            if not question.is_open:
                continue
            if garbled or question.sent > 1 or now >= question.give_up_at:
                self._fail(deque([question]), refusal)
            else:
                self._backlog.append(question)
        if self._backlog:
            self._open()

    def _leave(self, *, in_loop: bool) -> None:
        wire, self._wire = self._wire, None
        self._unread, self._unsent, self._leash_at = b"", bytearray(), _NEVER
        if wire is None:
            return
        if in_loop:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
        self._sock = None
        self._connections.drop(wire)

    @staticmethod
    def _fail(questions: deque[Question], error: BaseException) -> None:
        while questions:
            question = questions.popleft()
            if isinstance(error, BackendUnavailableError):
                # An error of one call must not be changed by another one.
                own = BackendUnavailableError(*error.args)
                own.__cause__ = error.__cause__
                own.sent, own.asked_at = question.sent > 0, question.asked_at
                question.tell(own)
            elif isinstance(error, FencedLockError):
                question.tell(error)
            else:
                question.tell(BackendUnavailableError(f"no connection: {error!r}"))

    # --- time limits

    def _wake_by(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(at - now, self._look_at_limits)

    def _look_at_limits(self) -> None:
        """Fail the questions whose time is over, and end a connection that has become silent."""
        self._timer, self._timer_at = None, _NEVER
        if self._wire is not None:
            self._read()  # the loop may have been busy while the answers came
        now, next_at = now_seconds(), self._leash_at
        late: deque[Question] = deque()
        for question in (*self._asked, *self._backlog):
            if not question.is_open:
                continue
            if question.give_up_at <= now:
                late.append(question)
            else:
                next_at = min(next_at, question.give_up_at)
        silent = TimeoutError("no reply in time")
        if late:
            self._backlog = deque(each for each in self._backlog if each.give_up_at > now)
            self._fail(late, self._connections.refusal(silent))
        oldest = self._asked[0].asked_at if self._asked else _NEVER
        if now >= self._leash_at or now - oldest >= self._silence_seconds:
            next_at = now
            self._cut(self._wire, silent)
        if next_at < self._timer_at and self.busy:
            self._wake_by(next_at, now)
