"""One Redis server from the point of view of one client.

This module calls the scripts and reads their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from fencedlock.backends.redis.connections import LEAST_WAIT_SECONDS, Connections, left_of
from fencedlock.backends.redis.connector import Connector
from fencedlock.backends.redis.floors import MOST_TOKEN, SLACK_US, Floors
from fencedlock.backends.redis.inbox import Inbox
from fencedlock.backends.redis.scripts import Script, Scripts, bulks, pack, whole_ms
from fencedlock.backends.redis.server_time import MOST_LATE, ServerTime, clock_jumps
from fencedlock.clock import now_seconds
from fencedlock.core.answers import Busy, ClaimAnswer, Gone, NotOurs, RenewAnswer, Renewed, Waiting
from fencedlock.core.claims import MOST_SPAN_SECONDS, Claim, Hold
from fencedlock.core.lease import MOST_TTL_SECONDS
from fencedlock.core.names import checked_namespace
from fencedlock.errors import BackendError, FencedLockError

_LEAST_RECHECK_MS = 10
"""The least time after which a waiter asks again about a lease that has just run out."""
_DEAF_RECHECK_MS = 500
"""The interval at which a waiter that hears no doorbell asks whether the lock is free."""

_BUSY = Busy()
_TOKEN_BYTES = len(b":1000000000\r\n")
"""The least length of the answer of an ordinary grant, which is a time in µs. A smaller number is
the answer to something else.
"""
_MOST_TTL_MS = 1000 * MOST_TTL_SECONDS
_MOST_ARGUMENTS = 1000
"""The number of entries that are remembered. If there are more threads and leases than that, all
entries are forgotten now and then.
"""


class _AcquireArguments(dict[tuple[str, float, str, bool], str]):
    """A cache of the last arguments of acquire.lua, because most claims repeat earlier ones.

    Its keys are a holder, a lease in seconds, a mode, and whether the claim is fair.
    """

    def __init__(self, channels: str) -> None:
        self._channels = channels

    def __missing__(self, kind: tuple[str, float, str, bool]) -> str:
        holder, lease_seconds, mode, fair = kind
        lease_ms = whole_ms(lease_seconds)
        span_ms = min(lease_ms, round(MOST_SPAN_SECONDS * 1000))
        if len(self) >= _MOST_ARGUMENTS:
            self.clear()
        arguments = self[kind] = bulks(
            f"{lease_ms} {holder}", str(lease_ms), mode, f"{fair:d} {span_ms} {self._channels}"
        )
        return arguments


class RedisServer(ServerTime):
    """The connections, scripts, times and floors that all locks of one client share."""

    ahead_us: float

    def __init__(
        self,
        connector: Connector,
        client_id: str,
        namespace: str,
        request_timeout_seconds: float,
        scripts: Scripts,
        on_close: Callable[[], None],
    ) -> None:
        super().__init__()
        self.scripts: Scripts = scripts
        self.request_timeout_seconds: float = request_timeout_seconds
        self._connector = connector
        self._on_close = on_close
        self._namespace = checked_namespace(namespace)
        self.connections: Connections = Connections(connector, request_timeout_seconds)
        inbox_prefix = f"{namespace}:inbox:"
        self._inbox_prefix = inbox_prefix
        self._inboxes: dict[str, Inbox] = {}
        """The inboxes by the client ids that claims begin with: the client's, and its loops'."""
        self._inbox = self._make_inbox(client_id)
        self.connections.on_new = self._connected_anew
        self.connections.on_switch = self._hang_up_inboxes
        self.channels: str = f"1 {inbox_prefix}"
        """The last argument of scripts that hand over a lock. It says that the server knows who
        listens, and where the inboxes are.
        """
        self.release_arguments: str = bulks("0", self.channels)
        """The last arguments of a release whose claim has no unanswered packet."""
        self.acquire_arguments: _AcquireArguments = _AcquireArguments(self.channels)
        self.floors: Floors = Floors()

    def _make_inbox(self, client_id: str) -> Inbox:
        inbox = self._inboxes[client_id] = Inbox(
            self.connections,
            self._connector,
            self._inbox_prefix + client_id,
            self.request_timeout_seconds,
            self._may_be_issued,
        )
        return inbox

    def forget_inbox(self, client_id: str) -> None:
        """Forget the inbox of an event loop, which was closed."""
        self._inboxes.pop(client_id, None)

    def _hang_up_inboxes(self) -> None:
        for inbox in list(self._inboxes.values()):
            inbox.hang_up()

    def _connected_anew(self) -> None:
        """Raise the floor of all locks after a connection was opened, and check the inbox.

        The connection may lead to another server, whose clock is behind. No token may be lower than
        what the server before it may have issued, even if this client was not told of it.

        The floor is the least that the server's clock shows now, because a server that has lost a
        token ahead of its clock would issue lower ones. To connect takes at least the time of the
        fastest answer, by which the server's time is uncertain. Only while no answer was fast may
        the server before have issued a higher token.
        """
        if self.ahead_us:
            # After the clock was set back, a fast answer has lowered only one of the bounds.
            least_us = int(now_seconds() * 1e6 + min(self.ahead_us, self.least_ahead_us))
            self.floors.of_all = max(self.floors.of_all, least_us)
        for inbox in list(self._inboxes.values()):
            inbox.doubt()

    def ask_time(self, timeout_seconds: float) -> None:
        """Learn the server's time, if the server tells it."""
        asked_at = now_seconds()
        try:
            seconds, micros = self.connections.ask(pack("TIME"), timeout_seconds)
            self.learn_time(int(seconds) * 10**6 + int(micros), asked_at)
        except (BackendError, TypeError, ValueError):
            pass  # the first answer of a script tells it, too

    def _may_be_issued(self, token: int) -> bool:
        """Return False for a token that is higher than the server's clock can have made it.

        A message with such a token is not believed.
        """
        return token <= self.server_us(now_seconds()) + SLACK_US

    # --- for the locks of this server

    def call(
        self,
        script: Script,
        packed: bytes,
        timeout_seconds: float,
        attempts: int = 1,
        repack: Callable[[], bytes] | None = None,
    ) -> tuple[bytes, int]:
        """Send a packed call of a script. Return its answer, and how often the call was sent.

        The answer is one line with its sign and its line end. For the other arguments see
        :meth:`Connections.converse`.
        """
        asked_at = now_seconds()
        reply, sent = self.connections.converse(
            packed, timeout_seconds, asked_at, attempts, None, repack
        )
        if type(reply) is bytes:
            return reply, sent
        if repack is not None:
            packed = repack()
        return self.call_with_text(
            script, packed, asked_at + timeout_seconds, attempts, reply, sent
        )

    def ask_in_time(
        self,
        script: Script,
        make: Callable[[int], bytes],
        read: Callable[[bytes, float], Any],
        timeout_seconds: float,
    ) -> Any:
        """Call a script, and return what ``read`` makes of its answer.

        ``make`` packs the call for a "not after" in µs of the server's clock. If the packet was
        late, the answer tells the server's time, and the question is asked again. ``read`` returns
        None then. It receives the answer, and the local time of the question.
        """
        for _ in range(MOST_LATE):
            asked_at = now_seconds()
            pack_call = partial(make, self.server_us(asked_at + timeout_seconds))
            reply, _ = self.call(script, pack_call(), timeout_seconds, repack=pack_call)
            answer = read(reply, asked_at)
            if answer is not None:
                return answer
            timeout_seconds = left_of(timeout_seconds, asked_at)
        raise clock_jumps()

    def call_with_text(
        self,
        script: Script,
        packed: bytes,
        until: float,
        attempts: int,
        error: Exception,
        sent: int,
    ) -> tuple[bytes, int]:
        """Repeat a call with the script's text, if it failed because the server has not loaded it.

        Any other ``error`` is raised. ``until`` is the local time at which the first of the
        ``attempts`` has to end. Return what :meth:`call` returns.
        """
        if not self.has_not_loaded(error):
            raise self.connections.refusal(error) from error
        now = now_seconds()
        reply, more = self.connections.converse(
            script.with_text(packed), max(LEAST_WAIT_SECONDS, until - now), now, attempts
        )
        if isinstance(reply, Exception):
            raise self.connections.refusal(reply) from reply
        return reply, sent + more - 1

    def has_not_loaded(self, error: Exception) -> bool:
        """Return True if the server has answered that it has not loaded a script."""
        return isinstance(error, self._connector.exceptions.NoScriptError)

    def refused(self, reply: Any) -> Any:
        """Return our error for one of the server, and any other reply as it is."""
        if not isinstance(reply, Exception) or isinstance(reply, FencedLockError):
            return reply
        error = self.connections.refusal(reply)
        error.__cause__ = reply
        return error

    def call_for_array(self, script: Script, packed: bytes, timeout_seconds: float) -> Any:
        """Return the reply to a packed call of a script that returns more than a line."""
        asked_at = now_seconds()
        try:
            return self.connections.ask(packed, timeout_seconds)
        except BackendError as error:
            if not isinstance(error.__cause__, self._connector.exceptions.NoScriptError):
                raise
        return self.connections.ask(script.with_text(packed), left_of(timeout_seconds, asked_at))

    def read_claim_answer(  # noqa: C901 - one branch for each answer
        self, claim: Claim, reply: bytes, asked_at: float
    ) -> ClaimAnswer | None:
        """Read the answer of acquire.lua to a question. Return None if the packet was late.

        ``asked_at`` is the local time of the question.
        """
        try:
            if reply[:1] == b":" and len(reply) >= _TOKEN_BYTES:  # each fast acquisition runs this
                token = int(reply[1:])
                # Twin of learn_time, without a look at the clock, so with one bound only.
                ahead_us = token - asked_at * 1e6
                if ahead_us < self.ahead_us or not self.ahead_us:
                    self.ahead_us = ahead_us
                floors = self.floors
                if token > floors.of_all:  # noqa: PLR1730 - max() takes longer
                    floors.of_all = token
                return token, asked_at + claim.lease_seconds, False, False
            words = reply.split()
            kind = words[0]
            if kind == b"+granted":
                now_us, token, lease_ms = int(words[1]), int(words[2]), int(words[3])
                if lease_ms <= _MOST_TTL_MS and token <= MOST_TOKEN:
                    self.learn_time(now_us, asked_at)
                    self.floors.saw(claim.bound.name, token, now_us, int(now_us - self.ahead_us))
                    return token, asked_at + lease_ms / 1000, words[4] == b"1", False
            if kind == b"+waiting":
                recheck_ms = max(int(words[2]), _LEAST_RECHECK_MS)
                inbox = self._inbox if len(self._inboxes) == 1 else self._inbox_of(claim)
                if not inbox.is_open:  # no doorbell will come
                    recheck_ms = min(recheck_ms, _DEAF_RECHECK_MS)
                return Waiting(asked_at, int(words[1]), now_seconds() + recheck_ms / 1000)
            if kind == b"+busy":
                return _BUSY
            if kind == b"+gone":
                return Gone()
            if kind == b"+late":
                self.learn_time(int(words[1]), asked_at)
                return None
        except (LookupError, ValueError) as error:
            raise nonsense(reply) from error
        raise nonsense(reply)

    def _inbox_of(self, claim: Claim) -> Inbox:
        return self._inboxes.get(claim.id.partition("/")[0], self._inbox)

    def read_renew_answer(self, _hold: Hold, reply: bytes, asked_at: float) -> RenewAnswer | None:
        """Read the answer of renew.lua. Return None if the packet was late."""
        try:
            words = reply.split()
            self.learn_time(int(words[1]), asked_at)
            if words[0] == b"+renewed" and int(words[2]) <= _MOST_TTL_MS:
                wanted = unquote(words[3].decode()) if len(words) > 3 else None
                return Renewed(asked_at + int(words[2]) / 1000, wanted)
            if words[0] == b"+lost":
                return NotOurs()
            if words[0] == b"+late":
                return None
        except (LookupError, ValueError) as error:
            raise nonsense(reply) from error
        raise nonsense(reply)


def nonsense(reply: Any) -> BackendError:
    """Return the error for an answer that a script can't have given."""
    return BackendError(f"the lock server's reply makes no sense: {reply!r:.200}")
