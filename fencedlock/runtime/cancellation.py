"""Ends an acquisition from outside."""

from __future__ import annotations

from fencedlock.errors import AcquireCancelledError
from fencedlock.runtime.bell import Bell


class Cancellation:
    """Ends waiting from outside: ``lock.acquire(cancel=cancellation)`` raises once somebody calls :meth:`cancel`.

    One cancellation may serve any number of acquisitions, at the same time or one after another; it stays cancelled.
    """

    def __init__(self) -> None:
        self._bells: set[Bell] = set()  # without a mutex: a signal handler may cancel in the middle of anything
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True once :meth:`cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Make every acquisition that waits with this object, and every later one, raise AcquireCancelledError."""
        self._cancelled = True
        for bell in self._bells.copy():
            bell.ring()

    def raise_if_cancelled(self, name: str) -> None:
        """Raise AcquireCancelledError for the lock of this name, if it is."""
        if self._cancelled:
            raise AcquireCancelledError(f"the acquisition of {name!r} was cancelled", lock=name)

    def _attach(self, bell: Bell) -> None:
        self._bells.add(bell)

    def _detach(self, bell: Bell) -> None:
        self._bells.discard(bell)
