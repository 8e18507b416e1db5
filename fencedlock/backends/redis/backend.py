"""One Redis server as one client sees it: the scripts, the times in their answers, and the errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from fencedlock.backends.base import (
    Backend,
    Busy,
    ClaimAnswer,
    Gone,
    Granted,
    Listener,
    NotOurs,
    RenewAnswer,
    Renewed,
    Waiting,
)
from fencedlock.backends.names import checked_namespace
from fencedlock.backends.redis import scripts
from fencedlock.backends.redis.connections import Connections, Connector
from fencedlock.backends.redis.floors import Floors
from fencedlock.backends.redis.inbox import Inbox
from fencedlock.backends.redis.keys import keys_of, lock_key, name_of, scan_pattern
from fencedlock.backends.redis.lock import RedisLock
from fencedlock.backends.redis.scripts import Script, pack
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendError, BackendUnavailableError, FencedLockError
from fencedlock.hold import MOST_TTL_SECONDS, Claim, Hold

_MOST_LATE = 3
_SCAN_COUNT = b"1000"
_LEAST_RECHECK_MS = 10
"""A lease that has just run out is looked at again so soon."""
_CHUNK = 500
"""Commands sent at once by a heartbeat; more of them would fill the buffers of both sides."""

_Answer = TypeVar("_Answer")
_Read = Callable[[list[bytes], float], _Answer]


class RedisBackend:
    """Implements :class:`fencedlock.backends.base.Backend` on one server."""

    def __init__(
        self, connector: Connector, client_id: str, namespace: str, request_timeout_seconds: float, on_close: Callable[[], None]
    ) -> None:
        self.request_timeout_seconds: float = request_timeout_seconds
        self._connector = connector
        self._on_close = on_close
        self._namespace = checked_namespace(namespace)
        self._connections = Connections(connector)
        self._inbox_prefix = f"{namespace}:inbox:".encode()
        self._inbox = Inbox(connector, self._inbox_prefix + client_id.encode(), request_timeout_seconds)
        self.doors: tuple[bytes, bytes] = (self._inbox_prefix, b"1")
        """The last arguments of scripts that hand over: where the inboxes are, and that PUBLISH counts who listens."""
        self.floors: Floors = Floors()
        self._ahead_us = 0.0
        """The server's time minus this process's, as of the last answer; the first request learns it."""

    # --- the operations of many locks

    def bind(self, name: str) -> RedisLock:
        return RedisLock(self, name, keys_of(lock_key(self._namespace, name)))

    def beat(self, claims: Sequence[Claim], timeout_seconds: float) -> list[ClaimAnswer | Exception]:
        makes = [partial(_bound(claim).pack_acquire, claim, b"beat") for claim in claims]
        return self._ask_many(scripts.ACQUIRE, makes, self.read_claim_answer, timeout_seconds)

    def renew(self, holds: Sequence[Hold], timeout_seconds: float, *, exact: bool = False) -> list[RenewAnswer | Exception]:
        makes = [partial(_bound(hold).pack_renew, hold, exact=exact) for hold in holds]
        return self._ask_many(scripts.RENEW, makes, self._read_renew_answer, timeout_seconds)

    def lock_names(self, prefix: str) -> Iterator[str]:
        cursor, pattern = b"0", scan_pattern(self._namespace, prefix).encode()
        seen: set[str] = set()
        while True:
            reply = self._command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_COUNT)
            try:
                cursor, keys = reply
                names = [name_of(self._namespace, key.decode(errors="replace")) for key in keys]
            except (AttributeError, TypeError, ValueError) as error:
                raise BackendError(f"the lock server's reply makes no sense: {reply!r:.200}") from error
            for name in names:
                if name is not None and name not in seen:
                    seen.add(name)
                    yield name
            if cursor == b"0":
                return

    def check_settings(self, timeout_seconds: float) -> list[str]:
        settings: dict[bytes, bytes] = {}
        for setting in (b"maxmemory-policy", b"appendonly", b"save"):
            try:
                reply = self._connections.ask(pack(b"CONFIG", b"GET", setting), timeout_seconds / 3)
            except BackendError:
                return []  # hosted servers often forbid it
            settings.update(zip(reply[::2], reply[1::2], strict=True))
        found = []
        policy = settings.get(b"maxmemory-policy", b"noeviction")
        if policy != b"noeviction":
            found.append(f"it may evict held locks when memory runs out: set maxmemory-policy to noeviction (it is {policy.decode()})")
        if settings.get(b"appendonly") == b"no" and not settings.get(b"save"):
            found.append("it keeps nothing over a restart, so a restart loses every held lock (tokens still rise): set appendonly to yes")
        return found

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        return since + target.lease_seconds

    def saw(self, name: str, token: int, now: float) -> None:
        self.floors.saw(name, token, self._server_us(now))

    def inherit(self, parent: Backend) -> None:
        assert isinstance(parent, RedisBackend)
        self.floors = parent.floors

    # --- connections

    def listen(self, listener: Listener) -> None:
        self._inbox.open(listener)

    def tend(self, now: float) -> float | None:
        return self._connections.trim(now)

    def close(self) -> None:
        self._inbox.close()
        self._connections.close()
        self._on_close()

    def forget_connections(self) -> None:
        self._inbox.forget()
        self._connections.forget()

    # --- for the locks of this server

    def ask(
        self,
        script: Script,
        make: Callable[[int], bytes],
        read: _Read[_Answer],
        timeout_seconds: float,
        *,
        attempts: int = 1,
    ) -> tuple[_Answer, int]:
        """Call a script; what ``read`` makes of its answer, and how often it was sent.

        ``make`` packs the call for a "not after" in µs of the server's clock. An answer "late" brings the server's
        time, and the question is asked again.
        """
        for _ in range(_MOST_LATE):
            sent_at = now_seconds()
            reply, sent = self.call(script, make(self._server_us(sent_at + timeout_seconds)), timeout_seconds, attempts=attempts)
            answer = self._read(reply, read, sent_at)
            if answer is not None:
                return answer, sent
        raise BackendUnavailableError("the lock server's clock jumps: it called three packets in a row late")

    def call(self, script: Script, packed: bytes, timeout_seconds: float, *, attempts: int = 1) -> tuple[Any, int]:
        """The reply to a packed call of a script, and how often it was sent."""
        (reply,), sent = self._connections.ask_lines(packed, 1, timeout_seconds, attempts=attempts)
        if isinstance(reply, self._connector.exceptions.NoScriptError):
            (reply,), more = self._connections.ask_lines(script.with_text(packed), 1, timeout_seconds, attempts=attempts)
            sent += more - 1
        return self._checked(reply), sent

    def _ask_many(
        self,
        script: Script,
        makes: Sequence[Callable[[int], bytes]],
        read: _Read[_Answer],
        timeout_seconds: float,
    ) -> list[_Answer | Exception]:
        answers: list[_Answer | Exception] = []
        for start in range(0, len(makes), _CHUNK):
            chunk = makes[start : start + _CHUNK]
            sent_at = now_seconds()
            not_after_us = self._server_us(sent_at + timeout_seconds)
            packed = [make(not_after_us) for make in chunk]
            try:
                replies, _ = self._connections.ask_lines(b"".join(packed), len(packed), timeout_seconds)
            except FencedLockError as error:
                answers += [error] * (len(makes) - start)
                break
            for make, reply in zip(chunk, replies, strict=True):
                try:
                    answer = None
                    if not isinstance(reply, self._connector.exceptions.NoScriptError):
                        answer = self._read(self._checked(reply), read, sent_at)
                    answers.append(self.ask(script, make, read, timeout_seconds)[0] if answer is None else answer)
                except FencedLockError as error:
                    answers.append(error)
        return answers

    def call_for_array(self, script: Script, packed: bytes, timeout_seconds: float) -> Any:
        """The reply to a packed call of a script that returns more than a line."""
        try:
            return self._connections.ask(packed, timeout_seconds)
        except BackendError as error:
            if not isinstance(error.__cause__, self._connector.exceptions.NoScriptError):
                raise
        return self._connections.ask(script.with_text(packed), timeout_seconds)

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, Exception):
            raise self._connector.error_for(reply) from reply
        return reply

    def _read(self, reply: Any, read: _Read[_Answer], sent_at: float) -> _Answer | None:
        """What ``read`` makes of the reply; None if the packet was late."""
        try:
            words = reply.split(b" ")
            if words[0] == b"late":
                self.learn_time(words[1], sent_at)
                return None
            return read(words, sent_at)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise BackendError(f"the lock server's reply makes no sense: {reply!r:.200}") from error

    def learn_time(self, server_us: bytes, sent_at: float) -> None:
        """Grants and renewals tell the server's time; the next "not after" is reckoned by it."""
        self._ahead_us = int(server_us) - sent_at * 1e6

    def _server_us(self, at: float) -> int:
        """The server's time, in µs, at a time of this process."""
        return int(at * 1e6 + self._ahead_us)

    def read_claim_answer(self, words: list[bytes], sent_at: float) -> ClaimAnswer:
        """The answer of acquire.lua."""
        kind = words[0]
        if kind == b"granted":
            self.learn_time(words[1], sent_at)
            return Granted(int(words[2]), sent_at + _lease_seconds(words[3]), words[4] == b"1")
        if kind == b"waiting":
            return Waiting(sent_at, int(words[1]), now_seconds() + max(int(words[2]), _LEAST_RECHECK_MS) / 1000)
        if kind == b"busy":
            return Busy()
        if kind == b"gone":
            return Gone()
        raise ValueError(kind)

    def _read_renew_answer(self, words: list[bytes], sent_at: float) -> RenewAnswer:
        self.learn_time(words[1], sent_at)
        if words[0] == b"renewed":
            return Renewed(sent_at + _lease_seconds(words[2]))
        return NotOurs()

    def _command(self, *parts: bytes) -> Any:
        return self._connections.ask(pack(*parts), self.request_timeout_seconds)


def _lease_seconds(ttl_ms: bytes) -> float:
    seconds = int(ttl_ms) / 1000
    if seconds > MOST_TTL_SECONDS:
        raise ValueError(ttl_ms)
    return seconds


def _bound(target: Claim | Hold) -> RedisLock:
    assert isinstance(target.bound, RedisLock)
    return target.bound
