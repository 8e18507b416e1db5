"""Checks that a function runs while its caller holds a lock."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fencedlock.errors import ConfigurationError, LockLostError, NotOwnedError
from fencedlock.runtime.client_state import all_states
from fencedlock.runtime.holding import raise_if_lost
from fencedlock.runtime.owners import current_owner
from fencedlock.runtime.process import become_own
from fencedlock.runtime.resources import Resource

_P = ParamSpec("_P")
_R = TypeVar("_R")


def assert_held(name: str) -> None:
    """Raise NotOwnedError if the caller does not hold the lock of this name, by any client.

    The caller is this thread or the current task, or the thread that runs the task's loop. A
    :class:`fencedlock.Lock` counts if any handle of this process holds it. Raises LockLostError if
    the lease has ended. No network I/O.
    """
    become_own()
    owner = current_owner()
    lost: LockLostError | None = None
    for state in list(all_states):
        resource: Resource | None = state.resources.get(name)
        for hold in list(resource.holds.values()) if resource is not None else ():
            if hold.owner in (owner, owner.thread) or hold.owner.kind == "handle":
                try:
                    raise_if_lost(state, hold)
                except LockLostError as error:
                    lost = error  # another client may hold it
                except NotOwnedError:
                    pass  # another thread has just released it
                else:
                    return
    if lost is not None:
        try:
            raise lost
        finally:
            # An error in a variable of a frame that it has passed keeps all frames alive.
            del lost
    raise NotOwnedError(
        f"this {owner.kind} does not hold lock {name!r}, and what it calls must run under it",
        lock=name,
    )


def requires(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator for functions that must run while the caller holds a lock.

    ``name`` may contain names of the function's parameters in braces, as in ``"orders/{id}"``. They
    are replaced by the arguments of the call. A call without the lock raises what
    :func:`assert_held` raises. The check of a coroutine function is made when its body begins.

    Raises ConfigurationError if the name contains something else than parameters.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        name_of = template(name, function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def check_and_await(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                assert_held(name_of(*args, **kwargs))
                return await function(*args, **kwargs)

            return check_and_await  # type: ignore[return-value]

        @functools.wraps(function)
        def check_and_call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            assert_held(name_of(*args, **kwargs))
            return function(*args, **kwargs)

        return check_and_call

    return decorate


def template(name: str, function: Callable[..., object]) -> Callable[..., str]:
    """Return a function that makes the name of a lock from the arguments of a call.

    Raises ConfigurationError if the name has a field that is no parameter of the function.
    """
    signature = inspect.signature(function)

    def name_of(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return name.format(**bound.arguments)

    try:
        name.format(**dict.fromkeys(signature.parameters, _ANYTHING))
    except (LookupError, ValueError) as error:
        raise ConfigurationError(
            f"the name {name!r} must have only parameters of {function.__qualname__}{signature} in "
            "braces, and {{ }} for braces"
        ) from error
    return name_of


class _Anything:
    """Has every attribute and item, so that a template may use those of an argument."""

    def __getattr__(self, name: str) -> _Anything:
        return self

    def __getitem__(self, key: object) -> _Anything:
        return self

    def __format__(self, spec: str) -> str:
        return ""


_ANYTHING = _Anything()
