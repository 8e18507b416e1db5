"""Bugs that are planted into a contender's copy of the library, or of the stores, to show that the
rules find them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fencedlock import FencingToken
from fencedlock.backends.redis.backend import RedisBackend
from fencedlock.backends.redis.floors import Floors
from fencedlock.backends.redis.scripts import Script, scripts_of
from fencedlock.clock import now_seconds
from fencedlock.core.answers import Renewed
from tests.faults.registers import PostgreSQLRegister

SCRIPTS = scripts_of()


@dataclass(frozen=True)
class Plant:
    """A bug, the nemeses that bring it to light, and the rules of which it breaks at least one."""

    plant: Callable[[], None]
    nemeses: tuple[str, ...]
    rules: tuple[str, ...]


def release_without_compare() -> None:
    """A release frees the lock even if another claim holds it."""
    _rewrite(
        SCRIPTS.release,
        "local ours = held[1] == claim and held[2] == token",
        "local ours = held[1]",
    )


def plain_counter() -> None:
    """Tokens come from a plain counter, which begins again when the server has lost its data."""
    _leave_ordinary_cases_to_the_others()
    for script in (SCRIPTS.acquire, SCRIPTS.release, SCRIPTS.withdraw):
        _rewrite(
            script,
            "above < now_us and now or string.format('%.0f', above + 1)",
            "string.format('%.0f', issued + 1)",
        )


def grant_to_the_dead() -> None:
    """The head of the queue gets the lock even if it is dead, and without a limit of time."""
    _leave_ordinary_cases_to_the_others()
    for script in (SCRIPTS.acquire, SCRIPTS.release, SCRIPTS.withdraw):
        _rewrite(script, "if not left_us or left_us <= 0 then", "if not left_us then")
        _rewrite(script, "string.format('%d', math.ceil(left_us / 1000))", "'86400000'")
        _rewrite(script, "return not counts or counts[2] ~= 0", "return true")
    _rewrite(SCRIPTS.acquire, "if whole_ms and left_ms > whole_ms then", "if false then")


def deadline_from_the_reply() -> None:
    """The lease is counted from the time of the answer instead of that of the request."""
    read_claim, read_renew = RedisBackend.read_claim_answer, RedisBackend.read_renew_answer

    def later(answer: Any, asked_at: float) -> Any:
        late_seconds = now_seconds() - asked_at
        if isinstance(answer, Renewed):
            return Renewed(answer.deadline + late_seconds)
        if type(answer) is tuple:  # a grant
            return answer[0], answer[1] + late_seconds, *answer[2:]
        return answer

    RedisBackend.read_claim_answer = lambda self, claim, reply, asked_at: later(  # type: ignore[method-assign]
        read_claim(self, claim, reply, asked_at), asked_at
    )
    RedisBackend.read_renew_answer = lambda self, _hold, reply, asked_at: later(  # type: ignore[method-assign]
        read_renew(self, _hold, reply, asked_at), asked_at
    )


def retry_counts_twice() -> None:
    """An acquire that is sent again counts as a nested one."""
    _rewrite(
        SCRIPTS.acquire,
        "if owner == claim then",
        "if owner == claim then\n  call('HINCRBY', lock, 'count', 2)",
    )


def last_come_first_served() -> None:
    """The release hands the lock to the last in the queue."""
    for script in (SCRIPTS.acquire, SCRIPTS.release, SCRIPTS.withdraw):
        _rewrite(script, "'ZPOPMIN'", "'ZPOPMAX'")


def any_secret_attaches() -> None:
    """A secret attaches whatever hold of the lock is detached, also one that was used."""
    _rewrite(
        SCRIPTS.attach,
        "elseif string.sub(owner, 1, #detached) ~= detached then",
        "elseif string.sub(owner, 1, 9) ~= 'detached:' then",
    )


def floor_as_a_number() -> None:
    """A floor that was raised does not follow the clock, so tokens that were lost are repeated."""
    for script in (SCRIPTS.acquire, SCRIPTS.release, SCRIPTS.withdraw):
        _rewrite(
            script,
            "local above = math.max(issued, tonumber(floor), now_us + ahead_us - 1)",
            "local above = math.max(issued, ahead_us > 0 and 0 or tonumber(floor), now_us - 1)",
        )
    Floors.of = lambda self, name, local_us: self.of_all  # type: ignore[method-assign]
    _rewrite(
        SCRIPTS.raise_floor,
        "if needed_us > ahead_us then",
        "call('HSET', fence, 'issued', ARGV[1])\nif needed_us > ahead_us then",
    )


def check_after_the_read() -> None:
    """The transaction reads before it checks the token."""

    def wrong(self: PostgreSQLRegister, token: FencingToken) -> tuple[int, str]:
        found = self.read(token.lock)
        self._fence.check(self._connection, token)
        time.sleep(0.1)  # a successor that comes now reads a value that is about to be overwritten
        return found

    PostgreSQLRegister.check_and_read = wrong  # type: ignore[assignment, method-assign]


PLANTS: dict[str, Plant] = {
    "release without compare": Plant(release_without_compare, ("late-packets",), ("exclusion",)),
    "plain counter": Plant(plain_counter, ("wipe-server",), ("rising tokens",)),
    "grant to the dead": Plant(grant_to_the_dead, ("kill-client",), ("progress", "recovery")),
    "deadline from the reply": Plant(deadline_from_the_reply, ("delay",), ("deadlines",)),
    "retry counts twice": Plant(retry_counts_twice, ("lose-replies",), ("counts",)),
    "last come, first served": Plant(last_come_first_served, ("step-client-clock",), ("fairness",)),
    "any secret attaches": Plant(any_secret_attaches, ("step-client-clock",), ("passing",)),
    "floor as a number": Plant(
        floor_as_a_number, ("fail-over", "raise-floor"), ("unique tokens", "rising tokens")
    ),
    "check after the read": Plant(
        check_after_the_read, ("wipe-server", "freeze-client"), ("read-modify-write",)
    ),
}


def plant(name: str) -> None:
    """Plant the bug with this name in the library of this process. The empty name plants none."""
    if name:
        PLANTS[name].plant()


def _leave_ordinary_cases_to_the_others() -> None:
    """Switch off the fast paths that are written out in scripts, so that each bug has to be planted
    in only one place.
    """
    for script in (SCRIPTS.acquire, SCRIPTS.release):
        _rewrite(script, "and now_us <", "and false and now_us <")


def _rewrite(script: Script, old: str, new: str) -> None:
    assert old in script.text, old
    script.text = script.text.replace(old, new)
    script.prepare()
