"""What gRPC needs in processes that fork, handle signals, or run greenlets."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import nullcontext
from importlib import import_module
from operator import attrgetter
from typing import Any

from fencedlock.errors import ConfigurationError


class _InterruptibleCondition(threading.Condition):
    """A condition whose ``with`` statement runs no Python code of its own.

    gRPC guards each channel by a ``threading.Condition``. A signal handler that raises at the entry
    of that class's ``__exit__`` leaves the mutex taken, and every later call of the channel, in
    every thread, waits for ever. Here both methods are the C lock's own.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


def make_interruptible(channel: Any) -> None:
    """Let no exception of a signal handler leave the channel's mutex taken, where this version of gRPC keeps it as those known do."""
    for state in gc.get_referents(getattr(channel, "_channel", None)):
        for part in gc.get_referents(state):
            if type(part) is threading.Condition:
                part.__class__ = _InterruptibleCondition


def _unlock_observability() -> None:
    """Let no call hold the one mutex by which all calls of a process look up a plugin for statistics.

    They look it up in a generator's ``with`` statement, and one that is interrupted at its end
    keeps the mutex. It guards nothing but the registration of a second plugin.
    """
    module = sys.modules.get("grpc._observability")
    if hasattr(module, "_plugin_lock"):
        module._plugin_lock = nullcontext()  # type: ignore[union-attr]


_LOADED_LATER = ("grpc._channel", "grpc._simple_stubs", "grpc.experimental")
"""What gRPC imports when it first makes a channel."""


def _load_the_rest() -> None:
    """Let no call import anything.

    An import that a signal handler's exception ends can keep the lock of its module, and then every
    other thread that needs the module waits for ever, with whatever it has taken.
    """
    for name in _LOADED_LATER:
        try:
            import_module(name)
        except ImportError:
            pass  # another version of gRPC has no such module


def load_grpc() -> Any:
    """The package ``grpc``, ready for greenlets where the standard library is patched for them.

    Raises ConfigurationError.
    """
    eventlet_patcher = sys.modules.get("eventlet.patcher")
    if eventlet_patcher is not None and eventlet_patcher.is_monkey_patched("socket"):
        raise ConfigurationError(
            "etcd can't be used under eventlet, because gRPC does not support it: use a redis:// "
            "server, or gevent"
        )
    try:
        grpc = import_module("grpc")
    except ImportError as error:
        raise ConfigurationError(
            f"gRPC can't be loaded here, as in an interpreter besides the main one: {error}"
        ) from error
    _load_the_rest()
    _unlock_observability()
    gevent_monkey = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("socket"):
        cython = import_module("grpc._cython.cygrpc")
        # Otherwise a call would stop all greenlets until it is answered.
        if not getattr(cython, "g_gevent_activated", False):
            import_module("grpc.experimental.gevent").init_gevent()
    return grpc
