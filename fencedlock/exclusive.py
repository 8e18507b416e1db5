"""The decorator ``exclusive``, for functions of which one call runs at a time."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

from fencedlock.clock import now_seconds
from fencedlock.core.lease import checked_keep
from fencedlock.errors import AcquireTimeoutError, ConfigurationError
from fencedlock.primitives.held import template
from fencedlock.primitives.rlock import FairLock
from fencedlock.primitives.timeouts import seconds_to_wait
from fencedlock.runtime.home import Home

_P = ParamSpec("_P")
_R = TypeVar("_R")

_BUSY = ("wait", "skip", "raise")


def exclusive(
    name: str,
    *,
    busy: Literal["wait", "skip", "raise"] = "wait",
    timeout: float | None = None,
    at_least: float = 0.0,
    client: Home | None = None,
    ttl: float | None = None,
    max_hold: float | None = None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator for functions of which one call runs at a time, across all hosts.

    Each call holds the :class:`FairLock` of this name, for a coroutine function that of
    ``fencedlock.asyncio``. So a function that calls itself re-enters the lock, and a body can check
    :func:`assert_held`. ``name`` may contain names of the function's parameters in braces, as in
    ``"reports/{day}"``. They are replaced by the arguments of the call.

    ``busy`` says what a call does while another one runs. It waits, ``"skip"`` returns None without
    running the function, and ``"raise"`` raises AcquireTimeoutError. ``timeout`` is the time in
    seconds for which the call waits before that. Without it, ``"wait"`` waits for ever, and the
    others make one attempt. A ``"wait"`` that times out raises AcquireTimeoutError.

    ``at_least`` keeps the lock closed until so many seconds after the function has begun, also if
    it raises. So of several cron jobs whose clocks differ by less than that, only one runs.
    ``client``, ``ttl`` and ``max_hold`` are those of the lock. Without ``client``, the default
    client at the time of the call is used.

    A call raises LockLostError after the function has returned, if the lease was lost meanwhile.

    Raises ConfigurationError if an argument is not valid, if the name contains something else than
    parameters, or if the function is a generator, whose body would run without the lock.
    """
    timeout_seconds = _checked_timeout(busy, timeout)
    at_least_seconds = checked_keep(at_least, "at_least") if at_least else 0.0
    settings: dict[str, Any] = {"client": client, "ttl": ttl, "max_hold": max_hold}

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"{function.__qualname__} is a generator, whose body runs after the call has "
                "returned: acquire the lock in its body"
            )
        name_of = template(name, function)
        if inspect.iscoroutinefunction(function):
            task_lock = _task_lock()

            @functools.wraps(function)
            async def await_alone(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                lock, has_begun = task_lock(name_of(*args, **kwargs), **settings), False
                try:
                    async with lock if timeout_seconds is None else lock.within(timeout_seconds):
                        has_begun = True
                        lock._keep_until = now_seconds() + at_least_seconds
                        return await function(*args, **kwargs)
                except AcquireTimeoutError:
                    if has_begun or busy != "skip":
                        raise
                    return None

            return await_alone  # type: ignore[return-value]

        @functools.wraps(function)
        def call_alone(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            lock, has_begun = _ThreadLock(name_of(*args, **kwargs), **settings), False
            try:
                with lock if timeout_seconds is None else lock.within(timeout_seconds):
                    has_begun = True
                    lock._keep_until = now_seconds() + at_least_seconds
                    return function(*args, **kwargs)
            except AcquireTimeoutError:
                if has_begun or busy != "skip":
                    raise
                return None

        return call_alone

    return decorate


def _checked_timeout(busy: str, timeout: float | None) -> float | None:
    """Return for how many seconds a call waits, None for ever. Raises ConfigurationError."""
    if busy not in _BUSY:
        raise ConfigurationError(f"busy must be one of {', '.join(_BUSY)}, not {busy!r}")
    if timeout is None:
        return None if busy == "wait" else 0.0
    try:
        seconds_to_wait(True, timeout)
    except (ValueError, OverflowError, TypeError) as error:
        raise ConfigurationError(f"timeout must be a time in seconds: {error}") from error
    return None if timeout == -1 else timeout


class _Kept:
    """Stays closed until a time, if that comes after the last release."""

    _keep_until = 0.0

    def release(self, *, keep: float = 0.0) -> Any:
        lock: Any = super()
        left = self._keep_until - now_seconds()
        return lock.release(keep=left if left > 0 and lock.depth == 1 else keep)


class _ThreadLock(_Kept, FairLock):
    pass


@functools.cache
def _task_lock() -> Callable[..., Any]:
    """Return the class of the locks of coroutine functions. Few programs have them."""
    from fencedlock.asyncio import FairLock as FairTaskLock

    class TaskLock(_Kept, FairTaskLock):
        pass

    return TaskLock
