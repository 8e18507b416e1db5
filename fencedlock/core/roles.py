"""What claims and holds need of others: an owner, somebody to wake, and the ticket of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Owner(Protocol):
    """The one who claims and holds locks: a thread, a task, or a handle."""

    @property
    def id(self) -> int:
        """The number of the owner. No other owner in this process has it."""

    @property
    def holder(self) -> str:
        """The host, process id and native thread id in ASCII, for people to read."""

    @property
    def kind(self) -> str:
        """What it is, in a word: thread, task."""

    @property
    def thread(self) -> Owner | None:
        """The owner for the thread in which it runs, the same for all its tasks.

        None for a handle, which any thread may use.
        """

    def name(self) -> str:
        """Return how an error calls the owner."""

    def alive(self) -> bool:
        """Return False once the owner has ended."""


class Waker(Protocol):
    """Wakes whoever waits until its claim is granted: a thread or a task."""

    def ring(self) -> None:
        """Wake it. If it does not sleep now, its next sleep ends at once."""


class ThreadWaker(Waker, Protocol):
    """Wakes a thread."""

    rung: bool
    """True from a ring until the sleep that it interrupts has ended."""
    alarm: Callable[[], object] | None
    """A function that wakes the thread if it sleeps by other means than :meth:`sleep`."""

    def nudge(self) -> None:
        """Wake the thread without a ring, so that it checks the state of its claim."""

    def sleep(self, timeout_seconds: float) -> None:
        """Sleep until a ring or a nudge, or until the timeout."""

    def wait(self, timeout_seconds: float) -> None:
        """Sleep like :meth:`sleep`, and clear :attr:`rung` afterwards."""


class Signal(Protocol):
    """Tells the observers of a hold that its lease is lost."""

    def set(self) -> None:
        """Report that the lease is lost."""


class Ticket(Protocol):
    """The record of a backend about one claim and its hold. The core only stores it."""

    @property
    def unanswered(self) -> bool:
        """True if a packet of the claim had no answer and may still be executed."""
