"""The operations on many locks of one Redis server, and the life of the connections to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeAlias, TypeVar

from fencedlock.backends.redis.connections import left_of
from fencedlock.backends.redis.floors import Floors
from fencedlock.backends.redis.keys import keys_of, lock_key, name_of, scan_pattern
from fencedlock.backends.redis.lock import RedisLock
from fencedlock.backends.redis.loop_calls import RedisLoopCalls
from fencedlock.backends.redis.scripts import Script, pack
from fencedlock.backends.redis.server import RedisServer, nonsense
from fencedlock.backends.redis.server_time import MOST_LATE, clock_jumps
from fencedlock.backends.redis.wire import Wire
from fencedlock.clock import now_seconds
from fencedlock.core.answers import ClaimAnswer, RenewAnswer
from fencedlock.core.backend import Backend, Listener
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.roles import ThreadWaker
from fencedlock.errors import BackendError, FencedLockError

_SCAN_COUNT = "1000"

MOST_CLOCK_DIFFERENCE_SECONDS = 1.0
"""The greatest harmless difference between the clocks of the server and of this host.

If the clock is further off, a failover endangers fencing tokens.
"""

_CHUNK = 100
"""The number of commands that a heartbeat sends at once.

If there were more, other requests would have to wait for the server.
"""

_Target = TypeVar("_Target", Hold, Claim)
_Answer: TypeAlias = ClaimAnswer | RenewAnswer
_Make: TypeAlias = Callable[[_Target, int], bytes]
_Read: TypeAlias = Callable[[_Target, bytes, float], _Answer | None]


class RedisBackend(RedisServer):
    """Implements :class:`fencedlock.core.backend.Backend` on one server."""

    # --- the operations of many locks

    def bind_lock(self, name: str) -> RedisLock:
        return RedisLock(self, name, keys_of(lock_key(self._namespace, name)))

    def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        def make(claim: Claim, not_after_us: int) -> bytes:
            return _bound(claim).pack_acquire(claim, not_after_us, "beat")

        return self._ask(
            self.scripts.acquire, claims, make, self.read_claim_answer, timeout_seconds
        )

    def renew(
        self,
        holds: Sequence[Hold],
        timeout_seconds: float,
        *,
        exact: bool = False,  # noqa: ARG002
    ) -> list[RenewAnswer | Exception]:
        # ``exact`` makes no difference, because every renewal sets the lease that the hold's latest
        # operation asks for, from now on.
        def make(hold: Hold, not_after_us: int) -> bytes:
            return _bound(hold).pack_renew(hold, not_after_us)

        return self._ask(self.scripts.renew, holds, make, self.read_renew_answer, timeout_seconds)

    def lock_names(self, prefix: str) -> Iterator[str]:
        cursor, pattern = b"0", scan_pattern(self._namespace, prefix)
        seen: set[str] = set()
        while True:
            try:
                reply = self.connections.ask(
                    pack("SCAN", cursor.decode(), "MATCH", pattern, "COUNT", _SCAN_COUNT),
                    self.request_timeout_seconds,
                )
                cursor, keys = reply
                names = [name_of(self._namespace, key.decode(errors="replace")) for key in keys]
            except (AttributeError, TypeError, ValueError) as error:
                raise nonsense(reply) from error
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
                return found  # hosted servers often forbid CONFIG
            settings.update(zip(reply[::2], reply[1::2], strict=True))
        policy = settings.get(b"maxmemory-policy", b"noeviction")
        if policy != b"noeviction":
            found.append(
                "it may evict held locks when memory runs out: set maxmemory-policy to noeviction "
                f"(it is {policy.decode()})"
            )
        if settings.get(b"appendonly") == b"no" and not settings.get(b"save"):
            found.append(
                "it keeps nothing over a restart, so a restart loses every held lock (tokens still "
                "rise): set appendonly to yes"
            )
        return found

    def _clock_warnings(self, timeout_seconds: float) -> list[str]:
        """Return a warning if the server's clock and this host's differ too much.

        Tokens follow the server's clock. After a failover they go on rising only if the clocks of
        the servers agree.
        """
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
            f"its clock is {abs(ahead):.1f} s {direction} this host's: fencing tokens follow that "
            "clock, so after a failover to a server with another time they may repeat or fall. "
            "Let all hosts follow the same time (NTP)"
        )
        return [warning]

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        return since + target.lease_seconds

    def saw(self, name: str, token: int, now: float) -> None:
        floors, server_us = self.floors, now * 1e6 + self.ahead_us
        # The ordinary case of Floors.saw, spelt out, because each hand-off runs it.
        if floors.of_all < token <= server_us:
            floors.of_all = token
        else:
            floors.saw(name, token, int(server_us), int(now * 1e6))

    def calls_of_loop(self, loop: Any, client_id: str, threads: Executor) -> RedisLoopCalls:
        return RedisLoopCalls(self, client_id, self._make_inbox(client_id), loop, threads)

    def inherit(self, parent: Backend) -> None:
        assert isinstance(parent, RedisBackend)
        self.floors: Floors = parent.floors

    # --- connections

    def listen(self, listener: Listener, timeout_seconds: float) -> None:
        self._inbox.open(listener, timeout_seconds)

    def wait(self, bell: ThreadWaker, timeout_seconds: float) -> None:
        self._inbox.wait(bell, timeout_seconds)

    def maintain(self, now: float) -> float | None:
        return self.connections.trim(now)

    def close(self, timeout_seconds: float) -> None:
        self._inbox.close(timeout_seconds)  # event loops close theirs
        self.connections.close()
        self._on_close()

    def forget_connections(self) -> None:
        for inbox in list(self._inboxes.values()):
            inbox.forget()
        self.connections.forget()

    def _ask(
        self,
        script: Script,
        targets: Sequence[_Target],
        make: _Make[_Target],
        read: _Read[_Target],
        timeout_seconds: float,
    ) -> list[Any]:
        """Call a script for each target, and return what ``read`` makes of the answers.

        ``make`` packs the call for a target and a "not after" in µs of the server's clock. If a
        packet was late, the answer tells the server's time, and the question is asked again.
        """
        if len(targets) == 1:  # for example a nested acquire, which does without the lists
            return [self._ask_one(script, targets[0], make, read, timeout_seconds)]
        return self._ask_many(script, targets, make, read, timeout_seconds)

    def _ask_one(
        self,
        script: Script,
        target: _Target,
        make: _Make[_Target],
        read: _Read[_Target],
        timeout_seconds: float,
    ) -> _Answer | Exception:
        try:
            answer: _Answer = self.ask_in_time(
                script, partial(make, target), partial(read, target), timeout_seconds
            )
        except FencedLockError as error:
            return error
        return answer

    def _ask_many(
        self,
        script: Script,
        targets: Sequence[_Target],
        make: _Make[_Target],
        read: _Read[_Target],
        timeout_seconds: float,
    ) -> list[_Answer | Exception]:
        """Ask for many targets, in one exchange for each :data:`_CHUNK` of them.

        If the server has not loaded the script, one question is repeated with the script's text,
        which loads it. Then the others are asked again too.
        """
        answers: dict[_Target, _Answer | Exception] = {}
        for first in range(0, len(targets), _CHUNK):
            unanswered = targets[first : first + _CHUNK]
            for _ in range(MOST_LATE):
                sent_at = now_seconds()
                until_us = self.server_us(sent_at + timeout_seconds)
                pack = partial(_pack_all, make, unanswered, until_us)
                try:
                    talk = partial(Wire.ask_lines, count=len(unanswered))
                    replies, _ = self.connections.converse(
                        pack(), timeout_seconds, sent_at, 1, talk, pack
                    )
                except FencedLockError as error:
                    # The other targets get the same error, because each would wait as long for it.
                    return [answers.get(target, error) for target in targets]
                loaded = False
                for target, reply in zip(unanswered, replies, strict=True):
                    try:
                        line = reply
                        if type(reply) is not bytes:
                            if loaded and isinstance(
                                reply, self._connector.exceptions.NoScriptError
                            ):
                                continue
                            line, _ = self.call_with_text(
                                script,
                                make(target, until_us),
                                sent_at + timeout_seconds,
                                1,
                                reply,
                                1,
                            )
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


def _pack_all(make: _Make[_Target], targets: Sequence[_Target], not_after_us: int) -> bytes:
    return b"".join([make(target, not_after_us) for target in targets])


def _bound(target: Claim | Hold) -> RedisLock:
    assert isinstance(target.bound, RedisLock)
    return target.bound
