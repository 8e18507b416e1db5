"""What all handles of locks have in common, blocking and asyncio ones. There is no network I/O."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Self

from fencedlock.clock import now_seconds
from fencedlock.core.claims import Hold
from fencedlock.core.lease import LeaseState, checked_max_hold, checked_ttl
from fencedlock.errors import AcquireTimeoutError, ConfigurationError, NotOwnedError
from fencedlock.runtime.callbacks import (
    Callbacks,
    LossCallback,
    RequestCallback,
    RiskCallback,
    SafetyCallback,
    finish_coroutine,
)
from fencedlock.runtime.holding import raise_if_lost
from fencedlock.runtime.home import Home, default_home
from fencedlock.runtime.owners import HandleOwner, Owner
from fencedlock.runtime.process import become_own, own
from fencedlock.runtime.resources import HandleSettings
from fencedlock.token import FencingToken


class Handle:
    """A named lock as its owner sees it: its settings, and what is known of the present hold."""

    _fair: ClassVar[bool]
    _package: ClassVar[str] = "fencedlock"
    """The package from which users import the class."""

    def _owner(self) -> Owner:
        """Return the owner that acquires and releases at this moment."""
        raise NotImplementedError

    def __init__(
        self,
        name: str,
        *,
        client: Home | None = None,
        ttl: float | None = None,
        max_hold: float | None = None,
        on_lost: LossCallback | None = None,
        on_at_risk: RiskCallback | None = None,
        on_safe: SafetyCallback | None = None,
        on_requested: RequestCallback | None = None,
    ) -> None:
        self._client = default_home() if client is None else client
        self._ttl = None if ttl is None else checked_ttl(ttl)
        self._callbacks = Callbacks(on_lost, on_at_risk, on_safe, on_requested).checked()
        table = self._client._table
        lease_seconds = self._ttl or table.ttl
        self._max_hold = checked_max_hold(max_hold, lease_seconds)
        self._settings = HandleSettings(
            self, table.resource(name), lease_seconds, self._max_hold, self._fair
        )
        self._prepare()

    def _prepare(self) -> None:
        """Make what a class of locks needs besides. Called once, at the end of the construction."""

    def _caller(self, callback: Callable[..., object], hold: Hold) -> Callable[..., object]:
        """Return a function that calls one of the callbacks with this lock and its arguments."""

        def call(*arguments: object) -> None:
            result = callback(self, *arguments)
            if isinstance(result, Coroutine):
                finish_coroutine(result, hold.claim.loop and hold.claim.loop())

        return call

    def _not_in_time(self, timeout: float) -> AcquireTimeoutError:
        """Return the error of a statement that could not acquire the lock in time."""
        return AcquireTimeoutError(
            f"lock {self.name!r} was not free within {timeout:g} s", lock=self.name
        )

    def _keep_refused(self, depth: int) -> ConfigurationError:
        """Return the error of ``keep`` in a release that is not the last one."""
        return ConfigurationError(
            f"lock {self.name!r} is held {depth} times: pass keep= to the last release"
        )

    def _detachable(self, ttl: float | None) -> tuple[Hold, float]:
        """Return the caller's hold, and the seconds that it is to last while it is detached."""
        hold = self._owned("cannot detach un-acquired lock")
        lease_seconds = hold.lease_seconds if ttl is None else checked_ttl(ttl)
        if hold.depth > 1:
            raise ConfigurationError(
                f"lock {self.name!r} is held {hold.depth} times: detach it where it is held once"
            )
        return hold, lease_seconds

    def _raise_if_holding(self) -> None:
        """Raise an error if the caller can't attach a hold, because it has one, perhaps lost."""
        hold = self._hold()
        if hold is not None:
            raise_if_lost(self._settings.state, hold)
            raise NotOwnedError(
                f"this {hold.owner.kind} holds lock {self.name!r}, so nobody has detached it",
                lock=self.name,
            )

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._settings.resource.name

    def owned(self) -> bool:
        """Return True if the caller holds the lock: this thread or task, or of a Lock this handle.

        It stays true if the lease is lost, until the last release. :meth:`ensure_held` tells
        whether the lease is valid. No network I/O.
        """
        return self._is_owned()

    @property
    def depth(self) -> int:
        """The number of times that the caller has to release the lock, 0 if it does not hold it."""
        return self._recursion_count()

    @property
    def token(self) -> FencingToken:
        """The fencing token of this thread's hold.

        It stays the same from the outermost acquire to the last release. Raises NotOwnedError if
        this thread does not hold the lock.
        """
        return self._held().fencing_token

    @property
    def abandoned(self) -> bool:
        """True if the holder before this thread did not release the lock, and its lease ended.

        In this case, repair what that holder may have left half done. Raises NotOwnedError if this
        thread does not hold the lock.
        """
        return self._held().abandoned

    @property
    def wanted(self) -> str | None:
        """The reason for which somebody has asked this holder to let go, or None.

        It is that of the last :meth:`fencedlock.Client.request_release`, of which a holder learns
        by its next beat. Nothing else happens. Raises NotOwnedError if this thread does not hold
        the lock.
        """
        return self._held().wanted

    def remaining(self) -> float:
        """Return the seconds left of the lease by the local clock, or 0 if it is lost.

        Does no network I/O. Raises NotOwnedError if this thread does not hold the lock.
        """
        return self._held().remaining(now_seconds())

    def ensure_held(self) -> None:
        """Raise LockLostError if the lease has ended, by the local clock or by the server's answer.

        Does no network I/O. Raises NotOwnedError if this thread does not hold the lock.
        """
        raise_if_lost(self._settings.state, self._held())

    def __repr__(self) -> str:
        hold = self._held_here()
        cls = type(self)
        state, owner, count = (
            ("unlocked", 0, 0) if hold is None else ("locked", hold.claim_id, hold.depth)
        )
        return (
            f"<{state} {self._package}.{cls.__qualname__} object name={self.name!r} owner={owner} "
            f"count={count} at {id(self):#x}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"ttl": self._ttl, "max_hold": self._max_hold, **self._callbacks._asdict()}
        return _make_handle, (type(self), self.name, self._client, settings)

    def __copy__(self) -> Self:
        return self  # all handles of a name and client are one lock anyway

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a lock of a copied client would wait for what this one holds

    def _is_owned(self) -> bool:
        return self._hold() is not None

    def _recursion_count(self) -> int:
        hold = self._hold()
        return 0 if hold is None else hold.depth

    def _hold(self) -> Hold | None:
        if not own[0]:
            become_own()
        hold = self._settings.resource.holds.get(self._owner().id)
        return None if hold is None or hold.state is LeaseState.RELEASED else hold

    def _hold_around(self) -> Hold | None:
        """Return the caller's hold, or of a task also the hold of its thread.

        The thread has acquired it before it began to run the loop, so it is around all that the
        loop does.
        """
        hold = self._hold()
        thread = self._owner().thread
        if hold is None and thread is not None:
            hold = self._settings.resource.holds.get(thread.id)
        return None if hold is None or hold.state is LeaseState.RELEASED else hold

    def _held(self) -> Hold:
        hold = self._hold_around()
        return self._owned() if hold is None else hold

    def _owned(self, otherwise: str = "") -> Hold:
        hold = self._hold()
        if hold is None:
            words = otherwise or f"this {self._owner().kind} does not hold the lock"
            raise NotOwnedError(f"{words} ({self.name!r}){self._who_else()}", lock=self.name)
        return hold

    def _who_else(self) -> str:
        """Return which other owner of this process holds the lock, for the text of an error."""
        held = self._held_here()
        if held is None:
            return ""
        kind = held.owner.kind
        words = f": {held.owner.name()} of this process holds it, and only the {kind} that took it "
        words += "may release it"
        if kind == "handle":
            return words
        return (
            f"{words}. A framework may run parts of one request in several threads or tasks: a "
            "fencedlock.Lock belongs to its handle, and any of them may release it"
        )

    def _held_here(self) -> Hold | None:
        """Return the hold of any thread of this process whose lease is valid, or None."""
        if not own[0]:
            become_own()
        now = now_seconds()
        for hold in list(self._settings.resource.holds.values()):
            if hold.state is not LeaseState.LOST and now < hold.deadline:
                return hold
        return None


class SelfOwned(Handle):
    """A handle that owns what is acquired through it, in whatever thread or task."""

    def _prepare(self) -> None:
        super()._prepare()
        self._handle_owner = HandleOwner(self)

    def _owner(self) -> HandleOwner:
        return self._handle_owner

    def __del__(self) -> None:
        settings, owner = getattr(self, "_settings", None), getattr(self, "_handle_owner", None)
        if settings is None or owner is None or not own[0]:
            return
        hold = settings.resource.holds.get(owner.id)
        if hold is not None and hold.wants_beats():
            settings.state.heartbeat.collect([hold])
            warnings.warn(
                f"the handle of held lock {self.name!r} was collected; it is released",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


def _make_handle(cls: type[Handle], name: str, client: Home, settings: dict[str, Any]) -> Handle:
    return cls(name, client=client, **settings)
