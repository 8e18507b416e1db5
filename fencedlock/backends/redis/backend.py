"""One Redis server as one client sees it: the scripts, the times in their answers, and the errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from fencedlock.backends.base import (
    Backend,
    Busy,
    ClaimAnswer,
    Gone,
    Listener,
    NotOurs,
    RenewAnswer,
    Renewed,
    Waiting,
)
from fencedlock.backends.names import checked_namespace
from fencedlock.backends.redis.connections import LEAST_WAIT_SECONDS, Connections, Connector, Wire
from fencedlock.backends.redis.floors import MOST_TOKEN, SLACK_US, Floors
from fencedlock.backends.redis.inbox import Inbox
from fencedlock.backends.redis.keys import keys_of, lock_key, name_of, scan_pattern
from fencedlock.backends.redis.lock import MOST_LATE, RedisLock, clock_jumps, left_of, whole_ms
from fencedlock.backends.redis.scripts import Script, Scripts, bulks, pack
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendError, FencedLockError
from fencedlock.hold import MOST_SPAN_SECONDS, MOST_TTL_SECONDS, Claim, Hold
from fencedlock.waiting import Bell

_SCAN_COUNT = "1000"
_LEAST_RECHECK_MS = 10
"""A lease that has just run out is looked at again so soon."""
_DEAF_RECHECK_MS = 500
"""A waiter that hears no doorbell asks so often whether the lock is free."""

MOST_CLOCK_DIFFERENCE_SECONDS = 1.0
"""A server whose clock is further from this host's endangers fencing tokens in a failover."""

_BUSY = Busy()
_TOKEN_BYTES = len(b":1000000000\r\n")
"""The answer of an ordinary grant, a time in µs, is at least so long; a smaller number answers something else."""
_MOST_TTL_MS = 1000 * MOST_TTL_SECONDS
_MOST_TERMS = 1000
"""So many are remembered: with more threads and leases than that, all are forgotten now and then."""

_CHUNK = 100
"""Commands sent at once by a heartbeat; with more of them, others would wait for the server."""

_Target = TypeVar("_Target", Hold, Claim)
_Answer: TypeAlias = ClaimAnswer | RenewAnswer
_Make: TypeAlias = Callable[[_Target, int], bytes]
_Read: TypeAlias = Callable[[_Target, bytes, float], _Answer | None]


class _Terms(dict[tuple[str, float, str, bool], str]):
    """The last arguments of acquire.lua, of a holder, a lease in seconds, a mode, and fair or not: most claims' are not new."""

    def __init__(self, doors: str) -> None:
        self._doors = doors

    def __missing__(self, kind: tuple[str, float, str, bool]) -> str:
        holder, lease_seconds, mode, fair = kind
        lease_ms = whole_ms(lease_seconds)
        span_ms = min(lease_ms, round(MOST_SPAN_SECONDS * 1000))
        if len(self) >= _MOST_TERMS:
            self.clear()
        terms = self[kind] = bulks(f"{lease_ms} {holder}", str(lease_ms), mode, f"{fair:d} {span_ms} {self._doors}")
        return terms


class RedisBackend:
    """Implements :class:`fencedlock.backends.base.Backend` on one server."""

    def __init__(
        self,
        connector: Connector,
        client_id: str,
        namespace: str,
        request_timeout_seconds: float,
        scripts: Scripts,
        on_close: Callable[[], None],
    ) -> None:
        self.scripts: Scripts = scripts
        self.request_timeout_seconds: float = request_timeout_seconds
        self._connector = connector
        self._on_close = on_close
        self._namespace = checked_namespace(namespace)
        self.connections: Connections = Connections(connector, request_timeout_seconds)
        inbox_prefix = f"{namespace}:inbox:"
        self._inbox = Inbox(self.connections, connector, inbox_prefix + client_id, request_timeout_seconds, self._may_be_issued)
        self.connections.on_new = self._connected_anew
        self.connections.on_switch = self._inbox.hang_up
        self.doors: str = f"1 {inbox_prefix}"
        """The last argument of scripts that hand over: that the server knows who listens, and where the inboxes are."""
        self.release_terms: str = bulks("0", self.doors)
        """The last arguments of a release whose claim has no packet unanswered."""
        self.terms: _Terms = _Terms(self.doors)
        self.floors: Floors = Floors()
        self.ahead_us: float = 0.0
        """The server's time minus this process's, as of the last answer; 0 before the first one, which teaches it."""

    # --- the operations of many locks

    def bind(self, name: str) -> RedisLock:
        return RedisLock(self, name, keys_of(lock_key(self._namespace, name)))

    def beat(self, claims: Sequence[Claim], timeout_seconds: float) -> list[ClaimAnswer | Exception]:
        def make(claim: Claim, not_after_us: int) -> bytes:
            return _bound(claim).pack_acquire(claim, not_after_us, "beat")

        return self._ask(self.scripts.acquire, claims, make, self.read_claim_answer, timeout_seconds)

    def renew(self, holds: Sequence[Hold], timeout_seconds: float, *, exact: bool = False) -> list[RenewAnswer | Exception]:  # noqa: ARG002
        # Every renewal is exact: it sets what the hold's latest operation asks for, from now on.
        def make(hold: Hold, not_after_us: int) -> bytes:
            return _bound(hold).pack_renew(hold, not_after_us)

        return self._ask(self.scripts.renew, holds, make, self._read_renew_answer, timeout_seconds)

    def lock_names(self, prefix: str) -> Iterator[str]:
        cursor, pattern = b"0", scan_pattern(self._namespace, prefix)
        seen: set[str] = set()
        while True:
            try:
                reply = self.connections.ask(
                    pack("SCAN", cursor.decode(), "MATCH", pattern, "COUNT", _SCAN_COUNT), self.request_timeout_seconds
                )
                cursor, keys = reply
                names = [name_of(self._namespace, key.decode(errors="replace")) for key in keys]
            except (AttributeError, TypeError, ValueError) as error:
                raise _nonsense(reply) from error
            for name in names:
                if name is not None and name not in seen:
                    seen.add(name)
                    yield name
            if cursor == b"0":
                return

    def ping(self, timeout_seconds: float) -> None:
        self.connections.ask(pack("PING"), timeout_seconds)

    def check_settings(self, timeout_seconds: float) -> list[str]:
        found = self._clock_warnings(timeout_seconds / 4)
        settings: dict[bytes, bytes] = {}
        for setting in ("maxmemory-policy", "appendonly", "save"):
            try:
                reply = self.connections.ask(pack("CONFIG", "GET", setting), timeout_seconds / 4)
            except BackendError:
                return found  # hosted servers often forbid it
            settings.update(zip(reply[::2], reply[1::2], strict=True))
        policy = settings.get(b"maxmemory-policy", b"noeviction")
        if policy != b"noeviction":
            found.append(f"it may evict held locks when memory runs out: set maxmemory-policy to noeviction (it is {policy.decode()})")
        if settings.get(b"appendonly") == b"no" and not settings.get(b"save"):
            found.append("it keeps nothing over a restart, so a restart loses every held lock (tokens still rise): set appendonly to yes")
        return found

    def _clock_warnings(self, timeout_seconds: float) -> list[str]:
        """Tokens follow the server's clock: after a failover they go on rising only while the clocks of the servers agree."""
        before = time.time()
        try:
            seconds, micros = self.connections.ask(pack("TIME"), timeout_seconds)
            ahead = int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2
        except (BackendError, TypeError, ValueError):
            return []
        if abs(ahead) <= MOST_CLOCK_DIFFERENCE_SECONDS:
            return []
        direction = "ahead of" if ahead > 0 else "behind"
        warning = (
            f"its clock is {abs(ahead):.1f} s {direction} this host's: fencing tokens follow that clock, so after a failover to a server "
            "with another time they may repeat or fall. Let all hosts follow the same time (NTP)"
        )
        return [warning]

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        return since + target.lease_seconds

    def saw(self, name: str, token: int, now: float) -> None:
        floors, server_us = self.floors, now * 1e6 + self.ahead_us
        if floors.of_all < token <= server_us:  # Floors.saw, spelt out, for it is on the way of each hand-off
            floors.of_all = token
        else:
            floors.saw(name, token, int(server_us), int(now * 1e6))

    def inherit(self, parent: Backend) -> None:
        assert isinstance(parent, RedisBackend)
        self.floors = parent.floors

    # --- connections

    def listen(self, listener: Listener, timeout_seconds: float) -> None:
        self._inbox.open(listener, timeout_seconds)

    def wait(self, bell: Bell, timeout_seconds: float) -> None:
        self._inbox.wait(bell, timeout_seconds)

    def tend(self, now: float) -> float | None:
        return self.connections.trim(now)

    def close(self, timeout_seconds: float) -> None:
        self._inbox.close(timeout_seconds)
        self.connections.close()
        self._on_close()

    def _connected_anew(self) -> None:
        """A connection was opened, perhaps to another server than before, whose clock is behind.

        No token may be lower than what that one may have issued by now, though we were not told of it.
        """
        if self.ahead_us:
            self.floors.of_all = max(self.floors.of_all, self.server_us(now_seconds()))
        self._inbox.doubt()

    def _may_be_issued(self, token: int) -> bool:
        """False for a token that is higher than the server's clock can have made it: what tells of it is not believed."""
        return token <= self.server_us(now_seconds()) + SLACK_US

    def forget_connections(self) -> None:
        self._inbox.forget()
        self.connections.forget()

    # --- for the locks of this server

    def call(
        self, script: Script, packed: bytes, timeout_seconds: float, attempts: int = 1, repack: Callable[[], bytes] | None = None
    ) -> tuple[bytes, int]:
        """The line that a packed call of a script answers, with its sign and end, and how often it was sent."""
        asked_at = now_seconds()
        reply, sent = self.connections.converse(packed, timeout_seconds, asked_at, attempts, None, repack)
        if type(reply) is bytes:
            return reply, sent
        if repack is not None:
            packed = repack()
        return self.call_with_text(script, packed, asked_at + timeout_seconds, attempts, reply, sent)

    def call_with_text(self, script: Script, packed: bytes, until: float, attempts: int, error: Exception, sent: int) -> tuple[bytes, int]:
        """The same after this error, if it says that the server has not loaded the script; otherwise it is raised.

        The caller has time until then, for the first of the attempts.
        """
        if not isinstance(error, self._connector.exceptions.NoScriptError):
            raise self.connections.refusal(error) from error
        now = now_seconds()
        reply, more = self.connections.converse(script.with_text(packed), max(LEAST_WAIT_SECONDS, until - now), now, attempts)
        if isinstance(reply, Exception):
            raise self.connections.refusal(reply) from reply
        return reply, sent + more - 1

    def _ask(
        self, script: Script, targets: Sequence[_Target], make: _Make[_Target], read: _Read[_Target], timeout_seconds: float
    ) -> list[Any]:
        """Call a script for each of these; what ``read`` makes of the answers.

        ``make`` packs the call for a "not after" in µs of the server's clock. An answer "late" brings the server's
        time, and the question is asked again.
        """
        if len(targets) == 1:  # a nested acquire: it needs nothing to keep many apart
            return [self._ask_one(script, targets[0], make, read, timeout_seconds)]
        return self._ask_many(script, targets, make, read, timeout_seconds)

    def _ask_one(
        self, script: Script, target: _Target, make: _Make[_Target], read: _Read[_Target], timeout_seconds: float
    ) -> _Answer | Exception:
        try:
            for _ in range(MOST_LATE):
                sent_at = now_seconds()
                pack = partial(make, target, self.server_us(sent_at + timeout_seconds))
                reply, _ = self.call(script, pack(), timeout_seconds, repack=pack)
                answer = read(target, reply, sent_at)
                if answer is not None:
                    return answer
                timeout_seconds = left_of(timeout_seconds, sent_at)
        except FencedLockError as error:
            return error
        return clock_jumps()

    def _ask_many(
        self, script: Script, targets: Sequence[_Target], make: _Make[_Target], read: _Read[_Target], timeout_seconds: float
    ) -> list[_Answer | Exception]:
        """In one exchange for some hundred. When one of them has loaded the script, the others are asked again, too."""
        answers: dict[_Target, _Answer | Exception] = {}
        for first in range(0, len(targets), _CHUNK):
            unanswered = targets[first : first + _CHUNK]
            for _ in range(MOST_LATE):
                sent_at = now_seconds()
                until_us = self.server_us(sent_at + timeout_seconds)
                pack = partial(_pack_all, make, unanswered, until_us)
                try:
                    talk = partial(Wire.ask_lines, count=len(unanswered))
                    replies, _ = self.connections.converse(pack(), timeout_seconds, sent_at, 1, talk, pack)
                except FencedLockError as error:
                    return [answers.get(target, error) for target in targets]  # the others would wait as long
                loaded = False
                for target, reply in zip(unanswered, replies, strict=True):
                    try:
                        line = reply
                        if type(reply) is not bytes:
                            if loaded and isinstance(reply, self._connector.exceptions.NoScriptError):
                                continue
                            line, _ = self.call_with_text(script, make(target, until_us), sent_at + timeout_seconds, 1, reply, 1)
                            loaded = True
                        answer = read(target, line, sent_at)
                        if answer is not None:
                            answers[target] = answer
                    except FencedLockError as error:
                        answers[target] = error
                unanswered = [target for target in unanswered if target not in answers]
                if not unanswered:
                    break
                timeout_seconds = left_of(timeout_seconds, sent_at)
            answers.update({target: clock_jumps() for target in unanswered})
        return [answers[target] for target in targets]

    def call_for_array(self, script: Script, packed: bytes, timeout_seconds: float) -> Any:
        """The reply to a packed call of a script that returns more than a line."""
        asked_at = now_seconds()
        try:
            return self.connections.ask(packed, timeout_seconds)
        except BackendError as error:
            if not isinstance(error.__cause__, self._connector.exceptions.NoScriptError):
                raise
        return self.connections.ask(script.with_text(packed), left_of(timeout_seconds, asked_at))

    def server_us(self, at: float) -> int:
        """The server's time, in µs, at a time of this process."""
        return int(at * 1e6 + self.ahead_us)

    def _learn_time(self, server_us: bytes, asked_at: float) -> None:
        """Grants and renewals tell the server's time; the next "not after" is reckoned by it."""
        self.ahead_us = int(server_us) - asked_at * 1e6

    def read_claim_answer(  # noqa: C901 - one branch for each answer
        self, claim: Claim, reply: bytes, asked_at: float
    ) -> ClaimAnswer | None:
        """The answer of acquire.lua to what was asked at this time; None if the packet was late."""
        try:
            if reply[:1] == b":" and len(reply) >= _TOKEN_BYTES:  # on the way of each acquisition
                token = int(reply[1:])
                self.ahead_us = token - asked_at * 1e6
                floors = self.floors
                if token > floors.of_all:  # noqa: PLR1730 - max() takes longer
                    floors.of_all = token
                return token, asked_at + claim.lease_seconds, False, False
            words = reply.split()
            kind = words[0]
            if kind == b"+granted":
                now_us, token, lease_ms = int(words[1]), int(words[2]), int(words[3])
                if lease_ms <= _MOST_TTL_MS and token <= MOST_TOKEN:
                    self.ahead_us = now_us - asked_at * 1e6
                    self.floors.saw(claim.bound.name, token, now_us, int(asked_at * 1e6))
                    return token, asked_at + lease_ms / 1000, words[4] == b"1", False
            if kind == b"+waiting":
                recheck_ms = max(int(words[2]), _LEAST_RECHECK_MS)
                if not self._inbox.is_open:  # no doorbell will come
                    recheck_ms = min(recheck_ms, _DEAF_RECHECK_MS)
                return Waiting(asked_at, int(words[1]), now_seconds() + recheck_ms / 1000)
            if kind == b"+busy":
                return _BUSY
            if kind == b"+gone":
                return Gone()
            if kind == b"+late":
                self._learn_time(words[1], asked_at)
                return None
        except (LookupError, ValueError) as error:
            raise _nonsense(reply) from error
        raise _nonsense(reply)

    def _read_renew_answer(self, _hold: Hold, reply: bytes, asked_at: float) -> RenewAnswer | None:
        """The answer of renew.lua."""
        try:
            words = reply.split()
            self._learn_time(words[1], asked_at)
            if words[0] == b"+renewed" and int(words[2]) <= _MOST_TTL_MS:
                return Renewed(asked_at + int(words[2]) / 1000)
            if words[0] == b"+lost":
                return NotOurs()
            if words[0] == b"+late":
                return None
        except (LookupError, ValueError) as error:
            raise _nonsense(reply) from error
        raise _nonsense(reply)


def _nonsense(reply: Any) -> BackendError:
    return BackendError(f"the lock server's reply makes no sense: {reply!r:.200}")


def _pack_all(make: _Make[_Target], targets: Sequence[_Target], not_after_us: int) -> bytes:
    return b"".join([make(target, not_after_us) for target in targets])


def _bound(target: Claim | Hold) -> RedisLock:
    assert isinstance(target.bound, RedisLock)
    return target.bound
