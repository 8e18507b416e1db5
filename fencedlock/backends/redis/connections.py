"""The pool of connections of one client. They are few, and opened when a call needs one."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from fencedlock.backends.redis.connector import Connector
from fencedlock.backends.redis.refusals import Meaning, meaning_of
from fencedlock.backends.redis.wire import SIGNS, Wire
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError, FencedLockError
from fencedlock.runtime.bell import Bell
from fencedlock.runtime.interrupts import make_mutex, raised_by_handler
from fencedlock.runtime.process import CopiedProcessError, own
from fencedlock.runtime.threads import Worker

MOST_CONNECTIONS = 32
"""The number of calls that may be in flight at once. If there are more threads, they take turns,
because one server answers one call at a time anyway.
"""

IDLE_SECONDS = 1.0
"""The time after which a connection that no call has needed is closed, unless it is the last."""

RESTED_SECONDS = 1.0
"""The time after which a NAT or a load balancer on the way may have silently forgotten an idle
connection.
"""

LEASH_SECONDS = 0.25
"""The time to wait for the answer to the first question on a connection that was idle for that
long, or twice the time that opening it took, if this is longer. Then the question is asked again
through a new connection.
"""

LEAST_WAIT_SECONDS = 0.01

LOOK_SECONDS = 0.05
"""The interval at which a thread that waits for a connection checks whether there is one. Usually
it is woken sooner, but an interrupt may lose a wake-up.
"""

_LINE_BYTES = 256
"""The size of the buffer for one answer of a script, which is shorter. Python allocates a small
buffer faster than a large one.
"""


def left_of(timeout_seconds: float, asked_at: float) -> float:
    """Return what is left of a time limit that began at ``asked_at``, for one more question."""
    return max(LEAST_WAIT_SECONDS, asked_at + timeout_seconds - now_seconds())


class _Claimant:
    """A thread that waits for a connection."""

    __slots__ = ("bell", "error")

    def __init__(self) -> None:
        self.bell: Bell = Bell()
        self.error: BaseException | None = None
        """Why no connection could be opened."""


class Connections:
    """The connections for calls.

    A call takes an idle connection, has one opened, or waits for one.

    There is no separate counter of connections, so one that an interrupt drops does not count any
    more as soon as it is garbage-collected. Connections are opened by threads of their own, because
    looking up a name, TLS and a credential provider can take longer than a caller has.
    """

    def __init__(self, connector: Connector, connect_timeout_seconds: float) -> None:
        self._connector = connector
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: deque[Wire] = deque()
        self._known: list[weakref.ref[Wire]] = []
        """Every connection that may be open, idle or not."""
        self._kept: list[weakref.ref[Wire]] = []
        """The connections of event loops, of which there may be any number."""
        self._dials: dict[_Dial, None] = {}
        """The attempts to open a connection that have not ended, oldest first."""
        self._failed_dials = 0
        """How many attempts have failed while younger ones went on. The count restarts when an
        attempt succeeds or the youngest one fails.
        """
        self._failure: FencedLockError | None = None
        """The error of the last of these."""
        self._dialled_at = 0.0
        self._connect_seconds = 0.0
        """How long it took to open the last connection."""
        self._mutex = make_mutex()
        self._claimants: dict[_Claimant, None] = {}
        """The threads that wait for a connection, in order of arrival."""
        self._closed = False
        self._trim_at = 0.0
        self.on_new: Callable[[], object] = _do_nothing
        """Called when a connection was opened, which may lead to another server than before."""
        self.on_switch: Callable[[], object] = _do_nothing
        """Called when the server turns out to be no longer the master."""

    def ask(self, packed: bytes, timeout_seconds: float) -> Any:
        """Send one packed command, and return its reply of any form. Raises BackendError."""
        reply = self.converse(packed, timeout_seconds, now_seconds(), 1, self._ask)[0]
        if isinstance(reply, Exception):
            raise self.refusal(reply) from reply
        return reply

    def _ask(self, wire: Wire, packed: bytes) -> Any:
        """Do what :meth:`Wire.ask` does, but return an error that the server answered.

        The connection stays in use after such an error.
        """
        try:
            return wire.ask(packed)
        except self._connector.exceptions.ResponseError as error:
            return error

    def converse(  # noqa: C901, PLR0912 - spelt out, because each call runs it
        self,
        packed: bytes,
        timeout_seconds: float,
        now: float,
        attempts: int = 1,
        talk: Callable[[Wire, bytes], Any] | None = None,
        repack: Callable[[], bytes] | None = None,
    ) -> tuple[Any, int]:
        """Send packed commands, and return the reply and how often they were sent.

        ``talk`` is one of :class:`Wire`'s ways to ask. Without it, the reply is one line, like
        those of :meth:`Wire.ask_lines`. ``now`` is the local time. Each of the ``attempts`` waits
        up to ``timeout_seconds`` for its answer. ``repack`` makes the same commands anew, for a
        connection that was opened meanwhile. It may lead to another server, which has to be told of
        higher floors.

        Raises BackendUnavailableError if even the last attempt had no answer. What a signal handler
        raises is raised unchanged.
        """
        sent = 0
        began_at = now
        until = now + timeout_seconds
        waited = False
        while True:
            wire: Wire | None = None
            try:
                if not own[0]:
                    raise CopiedProcessError  # the connections are the original's
                try:
                    wire = self._idle.pop()
                except IndexError:
                    wire, waited = self._take(until - now_seconds()), True
                seconds = timeout_seconds
                if now - wire.used_at > RESTED_SECONDS or waited:
                    seconds = self._leash(wire, now, until)
                    if waited and repack is not None:
                        packed = repack()
                if wire.timeout_seconds != seconds:
                    wire.limit(seconds)
                sent += 1
                if talk is None:  # spelt out, because each acquisition runs it
                    sock = wire.sock
                    sock.sendall(packed)
                    reply = sock.recv(_LINE_BYTES)
                    if not (
                        reply[:1] in SIGNS
                        and reply[-2:] == b"\r\n"
                        and reply.find(b"\n") == len(reply) - 1
                    ):
                        reply = wire.lines(reply, 1)[0]
                else:
                    reply = talk(wire, packed)
                if not own[0]:
                    # A signal handler has forked in the middle, so the reply is for the original.
                    raise CopiedProcessError
                wire.used_at = now
                wire.answered = True
                self._idle.append(wire)
            except BaseException as error:
                now, until, attempts = self._after_failure(
                    error, wire, sent, attempts, timeout_seconds, until, began_at
                )
                waited = True
            else:
                if self._claimants or self._closed:
                    self._attend()
                return reply, sent

    def _leash(self, wire: Wire, now: float, until: float) -> float:
        """Return how long this question may wait for its answer."""
        left = max(until - now_seconds(), LEAST_WAIT_SECONDS)
        if now - wire.used_at <= RESTED_SECONDS:
            return left
        return min(left, max(LEASH_SECONDS, 2 * wire.connect_seconds))

    def _after_failure(
        self,
        error: BaseException,
        wire: Wire | None,
        sent: int,
        attempts: int,
        timeout_seconds: float,
        until: float,
        began_at: float,
    ) -> tuple[float, float, int]:
        """Return when the next attempt begins and has to end, and how many are left, including it.

        Raise the error if there is no next attempt.

        Everything that the library sends may be repeated. If an idle connection was closed by the
        server or forgotten by something on the way, what was sent through it is sent again at once,
        in addition to the attempts that were asked for.
        """
        ours: FencedLockError | None = None
        try:
            if wire is not None:
                self.drop(wire)
            if not self._connector.is_ours(error):
                raise raised_by_handler(error) or error
            assert isinstance(error, Exception)
            if wire is not None:
                now, silent, cut = (
                    now_seconds(),
                    self._connector.is_silent(error),
                    self._connector.is_cut(error),
                )
                if now < until and (
                    (cut and wire.answered) or (silent and wire.timeout_seconds < timeout_seconds)
                ):
                    self.close_idle()
                    return now, until, attempts
                if attempts > 1 and (silent or cut):
                    return now, now + timeout_seconds, attempts - 1
            ours = self.refusal(error)
            if isinstance(ours, BackendUnavailableError):
                ours.sent, ours.asked_at = sent > 0, began_at
            raise ours from (None if ours is error else error)
        finally:
            # An error that is kept in a variable of a frame of its traceback keeps all of these
            # frames alive.
            del ours, error

    def refusal(self, error: Exception) -> FencedLockError:
        """Return our error for one that the server answered or the connection raised.

        If the server is no longer the master, end all connections.
        """
        if meaning_of(error)[0] is Meaning.MOVED_AWAY:
            self.hang_up()
            self.on_switch()
        return self._connector.error_for(error)

    # --- taking, opening and closing

    def _take(self, timeout_seconds: float) -> Wire:
        """Return a connection that nobody uses.

        Raises the error that prevents a connection from being opened, or BackendUnavailableError
        when time runs out.
        """
        until = now_seconds() + timeout_seconds
        claimant = _Claimant()
        try:
            self._claimants[claimant] = None
            while True:
                try:
                    return self._idle.pop()
                except IndexError:
                    pass
                if self._closed:
                    raise BackendUnavailableError(
                        f"the connections to the lock server at {self._connector.where} are closed"
                    )
                if claimant.error is not None:
                    raise claimant.error
                left = until - now_seconds()
                if left <= 0:
                    raise self._no_connection()
                self._dial_if_needed()
                claimant.bell.wait(min(left, LOOK_SECONDS))
        finally:
            self._claimants.pop(claimant, None)
            claimant.error = None  # as in _after_failure

    def take_new(self, timeout_seconds: float) -> Wire:
        """Return a connection that was opened or used just now, for a user who keeps it.

        Raises what prevents it from being opened. The user returns it to :meth:`drop`.
        """
        until = now_seconds() + timeout_seconds
        while True:
            if not own[0]:
                raise CopiedProcessError  # the connections are the original's
            wire = self._take(until - now_seconds())
            if now_seconds() - wire.used_at <= RESTED_SECONDS:
                with self._mutex:
                    self._known = _others(self._known, wire)
                    self._kept = [*_others(self._kept, wire), weakref.ref(wire)]
                self._attend()
                return wire
            self.drop(wire)

    def _no_connection(self) -> FencedLockError:
        where = self._connector.where
        failure, self._failure = self._failure, None
        if failure is not None:
            return failure
        if self._dials:
            return BackendUnavailableError(
                f"the lock server at {where} could not be connected to in time: no answer from its "
                "name or address"
            )
        return BackendUnavailableError(
            f"all {MOST_CONNECTIONS} connections to the lock server at {where} wait for answers"
        )

    def _dial_if_needed(self) -> None:
        """Start to open a connection if too few are being opened, and if one more is allowed.

        Too few means fewer than there are waiting threads. Apart from that, an attempt that takes
        far longer than the last successful one may never get an answer, although the next attempt
        would. So another attempt is started beside it, after pauses that double.

        The pauses also double with each failed attempt. Otherwise, if all attempts take long to
        fail, there would always be a younger one that goes on. With longer pauses, one of them is
        soon the youngest when it fails, and a waiting thread is told the reason.
        """
        with self._mutex:
            for dial in list(self._dials):
                dial.start()  # does nothing, unless an interrupt came before its first call
            now, spare = now_seconds(), len(self._dials) - len(self._claimants)
            doublings = min(spare + self._failed_dials, MOST_CONNECTIONS)
            if (
                spare >= 0
                and now
                < self._dialled_at + max(LEASH_SECONDS, 2 * self._connect_seconds) * 2**doublings
            ):
                return
            self._known = [known for known in self._known if known() is not None]
            if len(self._known) >= MOST_CONNECTIONS:
                return
            wire = Wire(self._connector())
            dial = _Dial(self, wire, self._connect_timeout_seconds, beside_others=spare >= 0)
            self._known.append(weakref.ref(wire))
            self._dials[dial] = None
            self._dialled_at = now
            dial.start()

    def dialled(self, dial: _Dial, wire: Wire, error: BaseException | None) -> None:
        """Record that an attempt to open a connection has ended.

        If it failed because the server is unavailable, no waiting thread is told of that while a
        younger attempt goes on and there are enough attempts for all of these threads.
        """
        with self._mutex:
            is_youngest = next(reversed(self._dials), None) is dial
            self._dials.pop(dial, None)
        if error is None:
            self._failed_dials, self._failure = 0, None
            self._connect_seconds = wire.connect_seconds
            self._connector.proved = True
            self.on_new()
            self._idle.append(wire)
            self._attend()
            return
        self._end(wire)
        ours = self._connector.connecting_error(error)
        if ours is not error:
            ours.__cause__ = error
        if (
            isinstance(ours, BackendUnavailableError)
            and not is_youngest
            and len(self._dials) >= len(self._claimants)
        ):
            self._failed_dials += 1
            self._failure = ours
            return
        self._failed_dials, self._failure = 0, None
        for claimant in list(self._claimants):
            if claimant.error is None:
                claimant.error = ours
                claimant.bell.ring()
                return

    def drop(self, wire: Wire) -> None:
        """Close a connection, and let another one be opened in its place."""
        try:
            self._idle.remove(wire)  # it is there if Ctrl-C came just after it was given back
        except ValueError:
            pass
        self._end(wire)
        self._attend()

    def _end(self, wire: Wire) -> None:
        wire.close()
        with self._mutex:
            self._known, self._kept = _others(self._known, wire), _others(self._kept, wire)

    def _attend(self) -> None:
        """Tell a waiting thread that a connection is idle, or that one more may be opened.

        If the client is closed, close the idle connections instead.
        """
        if self._closed:
            self.close_idle()
            return
        for claimant in list(self._claimants):
            claimant.bell.ring()
            return

    def trim(self, now: float) -> float | None:
        """Close idle connections that no call has needed for a while, except for the last.

        Return the local time of the next call, or None if no more than one is left.
        """
        if now >= self._trim_at:
            self._trim_at = now + IDLE_SECONDS
            for wire in list(self._idle)[:-1]:  # the last one is the next to be taken
                if now - wire.used_at >= IDLE_SECONDS:
                    try:
                        self._idle.remove(wire)
                    except ValueError:
                        continue  # taken meanwhile
                    self.drop(wire)
        return self._trim_at if len(self._idle) > 1 else None

    def close(self) -> None:
        """Close all idle connections, and the others once their calls have ended."""
        self._closed = True
        self.close_idle()

    def hang_up(self) -> None:
        """End all connections, including those of calls in flight.

        Later questions go to wherever the server's name leads by then.
        """
        for known in (*self._known, *self._kept):
            wire = known()
            if wire is not None:
                wire.hang_up()
        self.close_idle()

    def forget(self) -> None:
        """In a forked child, close the copies of the sockets without a word to the server."""
        for known in (*self._known, *self._kept):
            wire = known()
            if wire is not None:
                wire.forget()
        self._idle.clear()
        self._closed = True

    def close_idle(self) -> None:
        """Close all idle connections."""
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            self._end(wire)


class _Dial:
    """One attempt to open a connection, on a thread of its own."""

    def __init__(
        self, connections: Connections, wire: Wire, timeout_seconds: float, *, beside_others: bool
    ) -> None:
        self._connections = connections
        self._beside_others = beside_others
        self._wire = wire
        self._timeout_seconds = timeout_seconds
        self._worker = Worker(self._run, "fencedlock-connect")

    def start(self) -> None:
        """Start the attempt, unless it was started before."""
        try:
            self._worker.start()
        except RuntimeError:  # the interpreter ends, or the system has no thread left
            self._run()

    def _run(self) -> None:
        try:
            if self._beside_others:
                self._connections._connector.raise_if_plain()
            self._wire.open(self._timeout_seconds)
        except BaseException as error:
            self._connections.dialled(self, self._wire, error)
        else:
            self._connections.dialled(self, self._wire, None)


def _others(known: list[weakref.ref[Wire]], wire: Wire) -> list[weakref.ref[Wire]]:
    """Return those of these connections that still exist, without this one."""
    return [each for each in known if each() not in (None, wire)]


def _do_nothing() -> None:
    """Do nothing. Connections call this until a callback is set."""
