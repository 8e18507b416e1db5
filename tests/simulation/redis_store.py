"""The part of a Redis server that the library's scripts use: keys with times to live, and scripts.

The commands are checked one by one against a real server in ``test_redis_store.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COMMANDS = (
    *("EXISTS", "DEL", "PEXPIRE", "PTTL", "TIME", "PUBSUB", "PUBLISH", "PING"),
    *("HGET", "HMGET", "HSET", "HDEL", "HINCRBY", "HLEN"),
    *("ZADD", "ZREM", "ZSCORE", "ZRANGE", "ZPOPMIN", "ZPOPMAX", "ZREMRANGEBYSCORE"),
)
"""The commands that the scripts call. Each is a method."""


class RedisStore:
    """The data of a server. ``now_us`` tells its time in µs since 1970."""

    def __init__(
        self,
        now_us: Callable[[], int],
        send: Callable[[str, str], int],
        listeners: Callable[[str], int],
    ) -> None:
        self._now_us = now_us
        self._send = send
        self._listeners = listeners
        self.data: dict[str, Any] = {}
        self.expires_ms: dict[str, int] = {}
        self._script_us: int | None = None
        """The time of the script that runs. It stands still meanwhile."""
        self.commands: dict[str, Callable[..., Any]] = {
            name: getattr(self, f"_{name.lower()}") for name in COMMANDS
        }

    def time_us(self) -> int:
        return self._now_us() if self._script_us is None else self._script_us

    def hold_time(self, *, still: bool) -> None:
        """Let the time stand still while a script runs."""
        self._script_us = self._now_us() if still else None

    def _of(self, key: str) -> Any:
        end = self.expires_ms.get(key)
        if end is not None and self.time_us() // 1000 > end:
            del self.data[key], self.expires_ms[key]
        return self.data.get(key)

    def _drop_if_empty(self, key: str) -> None:
        if not self.data[key]:
            self.command("DEL", key)

    def command(self, name: str, *arguments: str) -> Any:
        """Carry out one command, and return its reply: a text, a number, a list or None."""
        return self.commands[name](*arguments)

    def _exists(self, *keys: str) -> int:
        return sum(self._of(key) is not None for key in keys)

    def _del(self, *keys: str) -> int:
        found = 0
        for key in keys:
            if self._of(key) is not None:
                found += 1
                del self.data[key]
                self.expires_ms.pop(key, None)
        return found

    def _pexpire(self, key: str, milliseconds: str) -> int:
        if self._of(key) is None:
            return 0
        if int(milliseconds) <= 0:
            return self._del(key)
        self.expires_ms[key] = self.time_us() // 1000 + int(milliseconds)
        return 1

    def _pttl(self, key: str) -> int:
        if self._of(key) is None:
            return -2
        end = self.expires_ms.get(key)
        return -1 if end is None else end - self.time_us() // 1000

    # --- hashes

    def _hget(self, key: str, field: str) -> str | None:
        return (self._of(key) or {}).get(field)

    def _hmget(self, key: str, *fields: str) -> list[str | None]:
        found = self._of(key) or {}
        return [found.get(field) for field in fields]

    def _hset(self, key: str, *pairs: str) -> int:
        if self._of(key) is None:
            self.data[key] = {}
        found = self.data[key]
        before = len(found)
        found.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(found) - before

    def _hdel(self, key: str, *fields: str) -> int:
        found = self._of(key)
        if found is None:
            return 0
        count = sum(found.pop(field, None) is not None for field in fields)
        self._drop_if_empty(key)
        return count

    def _hincrby(self, key: str, field: str, by: str) -> int:
        made = int(self._hget(key, field) or 0) + int(by)
        self._hset(key, field, str(made))
        return made

    def _hlen(self, key: str) -> int:
        return len(self._of(key) or {})

    # --- sorted sets

    def _line(self, key: str) -> list[tuple[float, str]]:
        return sorted((score, member) for member, score in (self._of(key) or {}).items())

    def _zadd(self, key: str, *pairs: str) -> int:
        if self._of(key) is None:
            self.data[key] = {}
        found = self.data[key]
        before = len(found)
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            found[member] = float(score)
        return len(found) - before

    def _zrem(self, key: str, *members: str) -> int:
        found = self._of(key)
        if found is None:
            return 0
        count = sum(found.pop(member, None) is not None for member in members)
        self._drop_if_empty(key)
        return count

    def _zscore(self, key: str, member: str) -> str | None:
        score = (self._of(key) or {}).get(member)
        return None if score is None else _score(score)

    def _zrange(self, key: str, first: str, last: str, *options: str) -> list[str]:
        line = self._line(key)
        start, end = (int(place) + (len(line) if int(place) < 0 else 0) for place in (first, last))
        found = line[max(0, start) : end + 1]
        if options:
            return [text for score, member in found for text in (member, _score(score))]
        return [member for _, member in found]

    def _zpopmin(self, key: str) -> list[str]:
        return self._pop(key, self._line(key)[:1])

    def _zpopmax(self, key: str) -> list[str]:
        return self._pop(key, self._line(key)[-1:])

    def _pop(self, key: str, found: list[tuple[float, str]]) -> list[str]:
        for score, member in found:
            self._zrem(key, member)
            return [member, _score(score)]
        return []

    def _zremrangebyscore(self, key: str, least: str, most: str) -> int:
        late = [member for score, member in self._line(key) if float(least) <= score <= float(most)]
        return self._zrem(key, *late)

    # --- the others

    def _time(self) -> list[str]:
        seconds, micros = divmod(self.time_us(), 10**6)
        return [str(seconds), str(micros)]

    def _pubsub(self, _numsub: str, channel: str) -> list[Any]:
        return [channel, self._listeners(channel)]

    def _publish(self, channel: str, message: str) -> int:
        return self._send(channel, message)

    def _ping(self) -> str:
        return "PONG"


def _score(score: float) -> str:
    return f"{score:.17g}"
