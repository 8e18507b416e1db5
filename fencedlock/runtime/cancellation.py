"""Cancellation, by which another thread ends an acquisition."""

from __future__ import annotations

from fencedlock.errors import AcquireCancelledError
from fencedlock.runtime.bell import Bell


class Cancellation:
    """An object by which another thread ends an acquisition.

    ``lock.acquire(cancel=cancellation)`` raises AcquireCancelledError once :meth:`cancel` was
    called. One object may serve any number of acquisitions, at the same time or one after another.
    It stays cancelled.
    """

    def __init__(self) -> None:
        # There is no mutex, because a signal handler may call cancel() at any moment.
        self._bells: set[Bell] = set()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True once :meth:`cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """End every acquisition that waits with this object, and every later one.

        They raise AcquireCancelledError.
        """
        self._cancelled = True
        for bell in self._bells.copy():
            bell.ring()

    def raise_if_cancelled(self, name: str) -> None:
        """Raise AcquireCancelledError for the lock of this name if :meth:`cancel` was called."""
        if self._cancelled:
            raise AcquireCancelledError(f"the acquisition of {name!r} was cancelled", lock=name)

    def _attach(self, bell: Bell) -> None:
        self._bells.add(bell)

    def _detach(self, bell: Bell) -> None:
        self._bells.discard(bell)
