"""Lock, which belongs to its handle: any thread or task may release it."""

from __future__ import annotations

from fencedlock.core.claims import Hold
from fencedlock.core.lease import LeaseState, checked_keep
from fencedlock.primitives.blocking import NamedLock
from fencedlock.primitives.handle import SelfOwned
from fencedlock.primitives.timeouts import seconds_to_wait
from fencedlock.runtime.acquiring import acquire
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.holding import lost_error
from fencedlock.runtime.owners import Owner, current_owner
from fencedlock.runtime.process import become_own, own
from fencedlock.runtime.releasing import release


class Lock(SelfOwned, NamedLock):
    """A lock that belongs to its handle, and behaves like ``threading.Lock``.

    Any thread or task that has the handle may release the lock. So it fits where a framework runs
    parts of one request in several threads or tasks. It is not reentrant: an acquire through a
    handle that holds the lock waits until somebody releases it. Two handles of one name exclude
    each other, also in one thread. Waiters that can be reached get the lock in the order in which
    they came.

    The lock is held until it is released, or until its handle is collected, its client is closed,
    or its process ends. The arguments are those of :class:`fencedlock.RLock`.

    Raises ConfigurationError, before any I/O, if the name, the ttl or the client is not valid.
    """

    _fair = True

    _acquirer: Owner | None = None
    """The thread or task that has acquired the present hold."""

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, cancel: Cancellation | None = None
    ) -> bool:
        """Acquire the lock. Returns True if it is held now, False if it was not free in time.

        ``timeout`` is in seconds, and -1 means to wait for ever. A timeout of 0 makes one attempt,
        like ``blocking=False``. ``cancel`` lets another thread end the waiting.

        Raises AcquireCancelledError if the acquisition is cancelled, or if the client is closed
        meanwhile. Raises BackendUnavailableError if the server does not answer within the timeout
        (without a timeout, within the ``outage_timeout`` of the client), and BackendError if the
        server refuses. Raises ConfigurationError if the client was closed before. For invalid
        arguments it raises what ``threading`` raises: ValueError, OverflowError or TypeError.
        """
        timeout_seconds = seconds_to_wait(blocking, timeout)
        if not own[0]:
            become_own()
        acquired = acquire(self._settings, self._handle_owner.here(), timeout_seconds, cancel)
        if acquired:
            self._acquirer = current_owner()
        return acquired

    def release(self, *, keep: float = 0.0) -> None:
        """Free the lock and hand it to the next waiter. Any thread or task may call this.

        With ``keep``, nobody gets the lock in the next ``keep`` seconds, as if it were still held.
        So of two cron jobs whose clocks differ by less than that, only one runs. No process is
        needed to keep it. etcd rounds the time up to whole seconds, and to the least lease of its
        server. If the server does not answer until the lease has ended, the lock is free then. If
        an exception of a signal handler comes before the release begins, the lock is still held.

        Raises NotOwnedError if this handle does not hold the lock, and LockLostError if the lease
        ended before. If the server is down, nothing is raised, and a background thread tries again
        until the lease has ended. Raises ConfigurationError, and changes nothing, if ``keep`` is no
        number of seconds.
        """
        keep_seconds = 0.0 if keep == 0 else checked_keep(keep)
        release(self._settings.state, self._owned("release unlocked lock"), keep_seconds)

    def _attacher(self) -> Owner:
        self._acquirer = current_owner()
        return self._handle_owner.here()

    def _raise_if_others(self, entered: Hold) -> None:
        """Raise LockLostError if the entered hold was lost, and another thread holds the lock."""
        if entered.state is LeaseState.LOST and self._acquirer is not current_owner():
            raise lost_error(entered)

    def _at_fork_reinit(self) -> None:
        """Be free. In a forked child it is free already."""
        if self._is_owned():
            self.release()
