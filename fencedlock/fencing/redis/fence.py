"""RedisFence: it checks a token inside a script, or before a MULTI."""

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
"""The default life of a fence: 7 days, as long as a lock's last token is remembered by default."""

LEAST_KEY_TTL_SECONDS = 0.001

_SET = "return redis.call('SET', KEYS[1], unpack(ARGV))"
_HSET = "return redis.call('HSET', KEYS[1], unpack(ARGV))"
_DELETE = "return redis.call('DEL', unpack(KEYS))"
_CHECK = "return redis.status_reply('OK')"
_SLOT_ERRORS = {"RedisClusterException", "ValkeyClusterException", "ClusterCrossSlotError"}
_MOST_UNPACKED = 7000
"""The most values in one call. Lua's ``unpack`` can return fewer than 8000 values."""


class RedisFence:
    """Fences in the Redis that keeps the data, through a client of redis-py or valkey-py.

    The fence of a resource is the hash ``prefix:{resource}``. In a cluster, the keys of the data
    need the same hash tag, as in ``{resource}:balance``.

    ``ttl`` is the number of seconds for which a fence lives at least after its last use, 7 days by
    default. A fence lives at most twice as long. None lets it live for ever. A holder that was
    asleep for longer than its fence lives is not refused. If memory is short and
    ``maxmemory-policy`` is not ``noeviction``, Redis may evict a fence.

    Raises ConfigurationError if ``prefix`` or ``ttl`` is not valid.
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
        """Return the key of the resource's fence.

        In the name of the resource, braces, percent signs and control characters are
        percent-encoded.
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
        """Run ``SET key value`` if the token is not stale.

        With ``ttl`` the key expires after that many seconds. Raises ValueError if ``ttl`` is not
        valid, and otherwise what a call of a :class:`FencedScript` raises, such as StaleTokenError.
        """
        if ttl is not None and (
            isinstance(ttl, bool)
            or not isinstance(ttl, int | float)
            or not ttl >= LEAST_KEY_TTL_SECONDS
        ):
            raise ValueError(
                f"ttl must be a number of seconds, at least {LEAST_KEY_TTL_SECONDS}, not {ttl!r}"
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
        """Run ``HSET key field value …`` if the token is not stale.

        Returns the number of new fields. Raises ValueError if ``mapping`` is empty or has more than
        3500 fields, and otherwise what a call of a :class:`FencedScript` raises, such as
        StaleTokenError.
        """
        pairs = [part for pair in mapping.items() for part in pair]
        self._raise_if_long(pairs)
        return int(self.script(_HSET)(client, token, [key], pairs, resource=resource))

    def delete(
        self, client: Any, token: FencingToken, *keys: Any, resource: str | None = None
    ) -> int:
        """Run ``DEL key …`` if the token is not stale.

        Returns the number of keys that existed. Raises ValueError for no key or more than 7000, and
        otherwise what a call of a :class:`FencedScript` raises, such as StaleTokenError.
        """
        self._raise_if_long(keys)
        return int(self.script(_DELETE)(client, token, keys, resource=resource))

    def script(self, text: str) -> FencedScript:
        """Return a Lua script that runs only for tokens that are not stale.

        The script sees only its own KEYS and ARGV.
        """
        return FencedScript(self, text)

    def check(self, pipeline: Any, token: FencingToken, resource: str | None = None) -> None:
        """Check the token on a pipeline, and guard the MULTI that follows.

        Call it **first** on a ``client.pipeline()``. Then read, call ``multi()``, queue the writes,
        and call ``execute()``. Commands before ``multi()`` run at once and unguarded, so only read
        there.

        The check raises the resource's token at once, and WATCHes the fence. If another holder
        comes before ``execute()``, that raises redis-py's ``WatchError``. Begin again then: the
        next check tells whether the token has become stale.

        Raises StaleTokenError if the resource has seen a higher token. Raises ConfigurationError if
        it is called after ``multi()`` or after commands were queued, if the pipeline has no
        transaction, or if the token is of another lock than the resource's. Raises TypeError if
        ``pipeline`` or ``token`` has the wrong type.
        """
        name = checked_resource(token, resource)
        needed = ("immediate_execute_command", "watch", "explicit_transaction")
        if ".asyncio" in type(pipeline).__module__ or not all(
            hasattr(pipeline, attribute) for attribute in needed
        ):
            raise TypeError(
                "RedisFence.check takes a pipeline first ('with client.pipeline() as pipeline:'), "
                f"and not {type(pipeline).__name__}; for single writes, and in a cluster, use "
                "set(), hset(), delete() and script()"
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
        # The token is raised before its key is watched, because a change of a watched key, even by
        # this connection, makes EXEC fail. The second call sees what came in between.
        script = self.script(_CHECK)
        script.call(pipeline.immediate_execute_command, token, name, [], [])
        pipeline.watch(self.key(name).encode())
        script.call(pipeline.immediate_execute_command, token, name, [], [])

    def arguments(self, token: FencingToken) -> list[Any]:
        """Return the guard's own arguments.

        Text is encoded here, because the clients' own encodings differ.
        """
        return [str(token), token.lock.encode(), self._life_ms]

    @staticmethod
    def _raise_if_long(parts: Sequence[Any]) -> None:
        if not 0 < len(parts) <= _MOST_UNPACKED:
            raise ValueError(
                f"from 1 to {_MOST_UNPACKED} values can go into one call, not {len(parts)}: write "
                "them in several"
            )


class FencedScript:
    """A Lua script that checks a token before it runs; made by :meth:`RedisFence.script`."""

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
        """Run the script on a client, and return what it returns.

        ``keys`` and ``args`` are its KEYS and ARGV. ``resource`` is the lock's name unless given.

        Raises StaleTokenError, and runs nothing, if the resource has seen a higher token. Raises
        ConfigurationError if the token is of another lock than the resource's, or if in a cluster
        the keys do not share a slot with the fence. Raises TypeError if ``token`` is not a
        FencingToken, or if ``client`` is asynchronous or a pipeline. Raises also what the client
        raises.
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
        """Run the script by ``execute``, a function that sends a command and returns its reply."""
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
    """Return the script with the guard before it, and its SHA-1.

    The guard is put into the first line, so that the lines of the script keep their numbers.
    """
    lines = (resources.files(__package__) / "guard.lua").read_text("utf-8").splitlines()
    guard = " ".join(line.strip() for line in lines if not line.startswith("--"))
    first, newline, rest = text.partition("\n") if text.startswith("#!") else ("", "", text)
    guarded = f"{first}{newline}{guard} {rest}\nend)()"
    return guarded, hashlib.sha1(guarded.encode(), usedforsecurity=False).hexdigest()
