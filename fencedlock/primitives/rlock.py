"""RLock and FairLock, with the semantics of ``threading.RLock``."""

from __future__ import annotations

from typing import ClassVar

from fencedlock.core.lease import LeaseState, checked_keep
from fencedlock.primitives.blocking import NamedLock
from fencedlock.primitives.timeouts import FOR_EVER, seconds_to_wait
from fencedlock.runtime.acquiring import acquire
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.holding import deepen, undeepen
from fencedlock.runtime.owners import current_owner
from fencedlock.runtime.process import become_own, own
from fencedlock.runtime.releasing import release

_RELEASED = LeaseState.RELEASED


class RLock(NamedLock):
    """A reentrant lock that threads, processes and hosts share by its name.

    It behaves like ``threading.RLock``.

    ``name`` says what the lock protects, for example ``"orders/42"``. ``client`` is the client of
    the server on which the lock is kept. Without it, the lock uses the default client of
    :func:`fencedlock.configure` or of the environment variable ``FENCEDLOCK_URL``. ``ttl`` is the
    length of the lease in seconds, which is how long others wait after this process has died.
    Without it, the ``ttl`` of the client applies. While the process lives, a background thread
    renews the lease. If the lease is lost nevertheless, ``on_lost(lock, reason)`` is called on a
    separate thread. ``on_at_risk(lock, remaining)`` is called there when the server does not answer
    a beat, and the lease will end after ``remaining`` seconds if it answers none. Then begin no new
    work until ``on_safe(lock)`` is called. Each call of ``on_at_risk`` is followed by one of
    ``on_safe``, also if the lock is released, or of ``on_lost``. ``on_requested(lock, reason)`` is
    called there when somebody has asked this holder to let go, by
    :meth:`fencedlock.Client.request_release`. Callbacks that are not given are those of the client.

    ``max_hold`` is the longest time, in seconds, for which the background thread renews a hold. A
    thread that hangs then loses the lock, and ``on_lost`` says why. If it is as long as the ttl,
    the lease is never renewed. A nested call and :meth:`renew` extend the lease nevertheless,
    because the holder has made them. Without ``max_hold``, a hold is renewed for as long as its
    owner lives.

    All handles of one name and client are one lock, and nesting across them re-enters it. The order
    in which waiters get the lock is not defined. Use :class:`FairLock` if the order matters.

    Raises ConfigurationError, before any I/O, if the name, the ttl or the client is not valid.
    """

    _fair: ClassVar[bool] = False

    _owner = staticmethod(current_owner)

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, cancel: Cancellation | None = None
    ) -> bool:
        """Acquire the lock, or go one level deeper if this thread already holds it.

        Returns True if the lock is held now, and False if it was not free in time. ``timeout`` is
        in seconds, and -1 means to wait for ever. A timeout of 0 makes one attempt, like
        ``blocking=False``. ``cancel`` lets another thread end the waiting.

        Raises AcquireCancelledError if the acquisition is cancelled, or if the client is closed
        meanwhile. Raises BackendUnavailableError if the server does not answer within the timeout
        (without a timeout, within the ``outage_timeout`` of the client), and BackendError if the
        server refuses. Raises LockLostError if this thread still holds a lease that was lost.
        Raises ConfigurationError if the client was closed before. For invalid arguments it raises
        what ``threading`` raises: ValueError, OverflowError or TypeError.
        """
        # Without a timeout, no call checks it, because this is on the way of each acquisition.
        timeout_seconds = (
            FOR_EVER if blocking and timeout == -1 else seconds_to_wait(blocking, timeout)
        )
        if not own[0]:
            become_own()
        owner, settings = self._owner(), self._settings
        hold = settings.resource.holds.get(owner.id)
        if hold is not None and hold.state is not _RELEASED:
            deepen(settings.state, hold)
            return True
        return acquire(settings, owner, timeout_seconds, cancel)

    def release(self, *, keep: float = 0.0) -> None:
        """Release one level. The last release frees the lock and hands it to the next waiter.

        With ``keep``, nobody gets the lock in the next ``keep`` seconds, as if it were still held.
        So of two cron jobs whose clocks differ by less than that, only one runs. No process is
        needed to keep it. etcd rounds the time up to whole seconds, and to the least lease of its
        server. If the server does not answer until the lease has ended, the lock is free then. If
        an exception of a signal handler comes before the release begins, the lock is still held.

        Raises NotOwnedError if this thread does not hold the lock, and LockLostError if the lease
        ended before. If the server is down, nothing is raised, and a background thread tries again
        until the lease has ended. Raises ConfigurationError, and changes nothing, if ``keep`` is no
        number of seconds, or if this is not the last release.
        """
        if not own[0]:
            become_own()
        settings, keep_seconds = self._settings, 0.0 if keep == 0 else checked_keep(keep)
        hold = settings.resource.holds.get(self._owner().id)
        if hold is None:
            hold = self._owned("cannot release un-acquired lock")
        if hold.depth > 1:
            if keep_seconds:
                raise self._keep_refused(hold.depth)
            undeepen(settings.state, hold)
        else:
            release(settings.state, hold, keep_seconds)


class FairLock(RLock):
    """A reentrant lock that serves waiters that can be reached in the order in which they came.

    The arguments are those of :class:`fencedlock.RLock`.

    Beats keep the place of a waiter in the queue. A waiter whose process has died, or is cut off,
    is passed over at once (on etcd, after a quarter of a second, once). An ``RLock`` of the same
    name, which is not fair, may overtake only if a lease has ended without a release, when the time
    of ``release(keep=...)`` is over, or between the reconnection of a waiter that was cut off and
    its next beat.
    """

    _fair = True
