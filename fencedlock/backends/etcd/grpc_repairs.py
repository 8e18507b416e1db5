"""Prepares gRPC for processes that fork, handle signals or run greenlets."""

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

    gRPC guards each channel with a ``threading.Condition``. A signal handler that raises at the
    entry of that class's ``__exit__`` leaves the mutex taken, and every later call of the channel,
    in every thread, waits forever. In this class both methods are those of the lock in C.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


def make_interruptible(channel: Any) -> None:
    """Make sure that an exception of a signal handler can't leave the channel's mutex taken.

    Does nothing if this version of gRPC does not store the mutex where the known versions do.
    """
    for state in gc.get_referents(getattr(channel, "_channel", None)):
        for part in gc.get_referents(state):
            if type(part) is threading.Condition:
                part.__class__ = _InterruptibleCondition


def _unlock_observability() -> None:
    """Replace the mutex under which all calls of a process look up gRPC's plugin for statistics.

    A call looks the plugin up in the ``with`` statement of a generator. If it is interrupted at the
    end of that statement, the mutex stays taken. The mutex only guards against the registration of
    a second plugin, so calls do not need it.
    """
    module = sys.modules.get("grpc._observability")
    if hasattr(module, "_plugin_lock"):
        module._plugin_lock = nullcontext()  # type: ignore[union-attr]


_LOADED_LATER = ("grpc._channel", "grpc._simple_stubs", "grpc.experimental")
"""The modules that gRPC imports when it makes its first channel."""


def _load_the_rest() -> None:
    """Import the modules that calls would otherwise import later.

    If an exception of a signal handler ends an import, the lock of the module may stay taken. Every
    other thread that needs the module then waits forever, and keeps whatever it has taken.
    """
    for name in _LOADED_LATER:
        try:
            import_module(name)
        except ImportError:
            pass  # this version of gRPC has no such module


def load_grpc() -> Any:
    """Import the package ``grpc`` and return it, prepared for signal handlers and for gevent.

    It is prepared for gevent only if gevent has patched the standard library. Raises
    ConfigurationError under eventlet, or if gRPC can't be imported.
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
            "gRPC can't be loaded here, for example because this is not the process's main "
            f"interpreter: {error}"
        ) from error
    _load_the_rest()
    _unlock_observability()
    gevent_monkey = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None and gevent_monkey.is_module_patched("socket"):
        cython = import_module("grpc._cython.cygrpc")
        # Without this, each call would stop all greenlets until it is answered.
        if not getattr(cython, "g_gevent_activated", False):
            import_module("grpc.experimental.gevent").init_gevent()
    return grpc
