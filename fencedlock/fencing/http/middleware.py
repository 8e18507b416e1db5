"""The common part of the middleware for ASGI and for WSGI: its settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from fencedlock.errors import ConfigurationError
from fencedlock.fencing.memory import MonotonicFence

App = TypeVar("App")
Request = TypeVar("Request")

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method's name, which is a ``token`` in the grammar of RFC 9110."""


class Middleware(Generic[App, Request]):
    """A service, and the settings for the check of its requests: see :class:`ASGIFencing`."""

    def __init__(
        self,
        app: App,
        fence: MonotonicFence | None = None,
        *,
        methods: Collection[str] | None = None,
        resource: Callable[[Request], str | None] | None = None,
    ) -> None:
        if resource is not None and fence is None:
            raise ConfigurationError(
                "resource= is for the middleware's own fence: without one, name the resource in "
                "the service's check"
            )
        self._app = app
        self._fence = fence
        self._methods = None if methods is None else _checked_methods(methods)
        self._resource = resource


def _checked_methods(methods: Collection[str]) -> frozenset[str]:
    """Return the methods in upper case. Raises ConfigurationError if one can't be a method."""
    if isinstance(methods, (str, bytes)) or not hasattr(methods, "__iter__"):
        raise ConfigurationError(
            f"methods must be a collection of names, as {{'POST', 'PUT'}}, not {methods!r:.80}"
        )
    names = list(methods)
    for name in names:
        if not isinstance(name, str) or not _METHOD.fullmatch(name):
            raise ConfigurationError(
                f"methods must be names such as 'POST', and {name!r:.80} can't be a method"
            )
    return frozenset(name.upper() for name in names)
