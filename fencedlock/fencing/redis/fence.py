"""RedisFence: the check inside a script, or before a MULTI."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from fencedlock.backends.redis.keys import lock_key
from fencedlock.core.names import checked_namespace
from fencedlock.errors import ConfigurationError
from fencedlock.fencing.base import checked_resource, other_lock, stale_token
from fencedlock.token import FencingToken

LIFE_SECONDS = 7 * 24 * 3600.0
"""As long as the lock itself remembers its last token."""

LEAST_TTL_SECONDS = 0.001

_SET = "return redis.call('SET', KEYS[1], unpack(ARGV))"
_HSET = "return redis.call('HSET', KEYS[1], unpack(ARGV))"
_DELETE = "return redis.call('DEL', unpack(KEYS))"
_CHECK = "return redis.status_reply('OK')"
_SLOT_ERRORS = {"RedisClusterException", "ValkeyClusterException", "ClusterCrossSlotError"}
_MOST_UNPACKED = 7000
"""Lua's unpack gives fewer than 8000 values."""


class RedisFence:
    """Fences in the Redis that keeps the data, by a client of redis-py or valkey-py.

    The fence of a resource is the hash ``prefix:{resource}``; in a cluster the data's keys need the
    same hash tag, as ``{resource}:balance``. ``ttl`` is how many seconds a fence lives at least
    after its last use, 7 days unless given (and twice that at most), and None lets it live for
    ever: a holder that slept longer than that is not refused. Where memory is short and
    ``maxmemory-policy`` is not ``noeviction``, Redis may evict a fence.
    """

    def __init__(self, prefix: str = "fences", *, ttl: float | None = LIFE_SECONDS) -> None:
        self.prefix: str = checked_namespace(prefix)
        if ttl is not None and (
            isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 1 <= ttl <= 10**9
        ):
            raise ConfigurationError(
                f"ttl must be a number of seconds from 1 to 10**9, or None, not {ttl!r}"
            )
        self._life_ms = 0 if ttl is None else round(ttl * 1000)

    def __repr__(self) -> str:
        return f"RedisFence({self.prefix!r})"

    def key(self, resource: str) -> str:
        """The key of the resource's fence.

        Braces, percent signs and control characters are percent-encoded.
        """
        return lock_key(self.prefix, resource)

    def set(
        self,
        client: Any,
        token: FencingToken,
        key: Any,
        value: Any,
        *,
        ttl: float | None = None,
        resource: str | None = None,
    ) -> None:
        """``SET key value``, if the token is not stale; with ``ttl`` in seconds the key expires.

        Raises StaleTokenError.
        """
        if ttl is not None and (
            isinstance(ttl, bool)
            or not isinstance(ttl, int | float)
            or not ttl >= LEAST_TTL_SECONDS
        ):
            raise ValueError(
                f"ttl must be a number of seconds, at least {LEAST_TTL_SECONDS}, not {ttl!r}"
            )
        options = () if ttl is None else ("PX", round(ttl * 1000))
        self.script(_SET)(client, token, [key], [value, *options], resource=resource)

    def hset(
        self,
        client: Any,
        token: FencingToken,
        key: Any,
        mapping: Mapping[Any, Any],
        *,
        resource: str | None = None,
    ) -> int:
        """``HSET key field value …``, if the token is not stale; the number of new fields.

        Raises StaleTokenError.
        """
        pairs = [part for pair in mapping.items() for part in pair]
        self._raise_if_long(pairs)
        return int(self.script(_HSET)(client, token, [key], pairs, resource=resource))

    def delete(
        self, client: Any, token: FencingToken, *keys: Any, resource: str | None = None
    ) -> int:
        """``DEL key …``, if the token is not stale; the number of keys that there were.

        Raises StaleTokenError.
        """
        self._raise_if_long(keys)
        return int(self.script(_DELETE)(client, token, keys, resource=resource))

    def script(self, text: str) -> FencedScript:
        """A Lua script that runs only for tokens that are not stale; it sees its own KEYS and ARGV only."""
        return FencedScript(self, text)

    def check(self, pipeline: Any, token: FencingToken, resource: str | None = None) -> None:
        """Guard a MULTI.

        Call it **first** on a ``client.pipeline()``; then read, ``multi()``, queue the writes, and
        ``execute()``.

        What is called before ``multi()`` runs at once, unguarded: only read there. It raises the
        resource's token at once, and WATCHes it: if another holder comes before ``execute()``, that
        raises redis-py's ``WatchError``. Then begin again, and this check tells whether the token
        has become stale.

        Raises StaleTokenError, and ConfigurationError after ``multi()``, for a token of another
        lock than the resource's, or without a transaction.
        """
        name = checked_resource(token, resource)
        needed = ("immediate_execute_command", "watch", "explicit_transaction")
        if ".asyncio" in type(pipeline).__module__ or not all(
            hasattr(pipeline, attribute) for attribute in needed
        ):
            raise TypeError(
                "RedisFence.check takes a pipeline first ('with client.pipeline() as pipeline:'), "
                f"and not {type(pipeline).__name__}; for single writes, and in a cluster, there "
                "are set(), hset(), delete() and script()"
            )
        if (
            not pipeline.transaction
            or pipeline.explicit_transaction
            or (pipeline.command_stack and not pipeline.watching)
        ):
            raise ConfigurationError(
                "the check comes first in a pipeline(transaction=True), before multi() and before "
                "anything is queued: check, read, multi(), write"
            )
        # Raised before it is watched: our own change of a watched key would fail our own EXEC. What
        # came in between is seen by the second.
        script = self.script(_CHECK)
        script.call(pipeline.immediate_execute_command, token, name, [], [])
        pipeline.watch(self.key(name).encode())
        script.call(pipeline.immediate_execute_command, token, name, [], [])

    def arguments(self, token: FencingToken) -> list[Any]:
        """The guard's own arguments; text is encoded here, for clients differ in that."""
        return [str(token), token.lock.encode(), self._life_ms]

    @staticmethod
    def _raise_if_long(parts: Sequence[Any]) -> None:
        if not 0 < len(parts) <= _MOST_UNPACKED:
            raise ValueError(
                f"from 1 to {_MOST_UNPACKED} values can go into one call, not {len(parts)}: write "
                "them in several"
            )


class FencedScript:
    """A Lua script behind the guard; made by :meth:`RedisFence.script`."""

    def __init__(self, fence: RedisFence, text: str) -> None:
        self._fence = fence
        self._text, self._sha = _guarded(text)

    def __call__(
        self,
        client: Any,
        token: FencingToken,
        keys: Sequence[Any] = (),
        args: Sequence[Any] = (),
        *,
        resource: str | None = None,
    ) -> Any:
        """Run it on a client; what the script returns.

        ``resource`` is the lock's name unless given.

        Raises StaleTokenError, and runs nothing, if the resource has seen a higher token. Raises
        ConfigurationError for a token of another lock than the resource's; TypeError for what is no
        token; and what the client raises.
        """
        name = checked_resource(token, resource)
        if (
            not hasattr(client, "execute_command")
            or hasattr(client, "command_stack")
            or ".asyncio" in type(client).__module__
        ):
            raise TypeError(
                "a fenced write takes the client first, a redis.Redis or the like, and not "
                f"{type(client).__name__}"
            )
        return self.call(client.execute_command, token, name, keys, args)

    def call(
        self,
        execute: Any,
        token: FencingToken,
        resource: str,
        keys: Sequence[Any],
        args: Sequence[Any],
    ) -> Any:
        """Run it by whatever executes a command."""
        key = self._fence.key(resource)
        operands = [1 + len(keys), key.encode(), *keys, *self._fence.arguments(token), *args]
        try:
            try:
                return execute("EVALSHA", self._sha, *operands)
            except Exception as error:
                if type(error).__name__ != "NoScriptError":
                    raise
                return execute("EVAL", self._text, *operands)
        except Exception as error:
            kind, _, rest = str(error).partition(" ")
            if kind == "FENCEDLOCKSTALE":
                raise stale_token(token, resource, int(rest.split(" ")[0])) from None
            if kind == "FENCEDLOCKOTHER":
                raise other_lock(
                    token, resource, bytes.fromhex(rest.split(" ")[0]).decode()
                ) from None
            if type(error).__name__ in _SLOT_ERRORS and "slot" in str(error):
                tag = key.removeprefix(f"{self._fence.prefix}:")
                raise ConfigurationError(
                    f"in a cluster all keys of one call must share a slot with the fence {key!r}: "
                    f"name them '{tag}:…', or pass resource="
                ) from error
            raise


@functools.lru_cache(maxsize=256)
def _guarded(text: str) -> tuple[str, str]:
    """The script behind the guard, and its SHA-1. The lines of the script keep their numbers."""
    lines = (resources.files(__package__) / "guard.lua").read_text("utf-8").splitlines()
    guard = " ".join(line.strip() for line in lines if not line.startswith("--"))
    first, newline, rest = text.partition("\n") if text.startswith("#!") else ("", "", text)
    guarded = f"{first}{newline}{guard} {rest}\nend)()"
    return guarded, hashlib.sha1(guarded.encode(), usedforsecurity=False).hexdigest()
