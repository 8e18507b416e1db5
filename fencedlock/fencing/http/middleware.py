"""What the middleware for ASGI and for WSGI is made with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from fencedlock.errors import ConfigurationError
from fencedlock.fencing.memory import MonotonicFence

App = TypeVar("App")
Request = TypeVar("Request")


class Middleware(Generic[App, Request]):
    """A service, and how its requests are to be checked: see :class:`ASGIFencing`."""

    def __init__(
        self,
        app: App,
        fence: MonotonicFence | None = None,
        *,
        methods: Collection[str] | None = None,
        resource: Callable[[Request], str | None] | None = None,
    ) -> None:
        if resource is not None and fence is None:
            raise ConfigurationError("resource= is for the middleware's own fence: without one, name the resource in the service's check")
        self._app = app
        self._fence = fence
        self._methods = methods
        self._resource = resource
