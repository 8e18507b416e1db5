"""A simulated world: virtual time, processes with clocks of their own, and threads.

One seed decides everything that happens. A thread is a greenlet, which runs until it waits for
something. So a lease of 30 seconds costs no time, and the same seed gives the same history.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any

from greenlet import greenlet

MOST_LATE_SECONDS = 0.0002
"""How late a thread that may go on gets the processor at most."""


class Killed(BaseException):
    """Ends a thread of a process that was killed, wherever it is."""


class World:
    """The time, and what is going to happen."""

    def __init__(self, seed: object) -> None:
        self.rng: random.Random = random.Random(str(seed))
        self.now: float = 1000.0
        self.thread: Thread | None = None
        """The thread that runs."""
        self.process: Process | None = None
        """The process that runs, whether one of its threads does or its network."""
        self.hub: greenlet = greenlet.getcurrent()
        """Runs between the turns of the threads."""
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0
        self._numbers = {"owner": 0, "process": 0}

    def at(self, when: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do something at this time. What is planned for one time is done in order."""
        self._number += 1
        heapq.heappush(self._events, (max(when, self.now), self._number, action, arguments))

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do something after this time."""
        self.at(self.now + seconds, action, *arguments)

    def run(self, until: float) -> None:
        """Let everything happen that is planned until this time."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(events)
            action(*arguments)
        self.now = until

    def close(self, processes: Iterable[Process]) -> None:
        """End all threads, wherever they are."""
        for process in processes:
            process.kill()
            for thread in process.threads:
                if thread.greenlet:  # it has begun, and has not ended
                    self.thread, self.process = thread, process
                    thread.greenlet.throw(Killed)
        self.thread = self.process = None
        self._events = []

    def number(self, of: str) -> int:
        """Return the next number of this kind."""
        self._numbers[of] += 1
        return self._numbers[of]

    def switch(self, thread: Thread, value: object) -> None:
        """Let a thread run until it waits."""
        self.thread, self.process = thread, thread.process
        try:
            thread.greenlet.switch(value)
        finally:
            self.thread = self.process = None

    def wait(self, seconds: float | None = None) -> bool:
        """Let the calling thread wait until :meth:`wake`, or for so many seconds of its clock.

        Return False after the timeout.
        """
        thread = self.thread
        assert thread is not None
        if thread.process.is_dead:
            raise Killed
        thread.turn += 1
        if seconds is not None:
            self.after(max(0.0, seconds), self._resume, thread, thread.turn, False)
        woken = self.hub.switch()
        if thread.process.is_dead:
            raise Killed
        return bool(woken)

    def wake(self, thread: Thread, turn: int) -> None:
        """Let a thread go on that waits, unless its wait of this number has ended."""
        self.after(self.rng.uniform(0, MOST_LATE_SECONDS), self._resume, thread, turn, True)

    def _resume(self, thread: Thread, turn: int, woken: bool) -> None:
        process = thread.process
        if thread.turn != turn or process.is_dead:
            return
        if process.is_frozen:
            process.postponed.append((self._resume, (thread, turn, woken)))
            return
        thread.turn += 1
        self.switch(thread, woken)


class Process:
    """One simulated process, with a clock and threads."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.ahead_seconds: float = world.rng.uniform(0, 1e6)
        """What its clock shows in addition to the time of the world."""
        self.is_dead: bool = False
        self.is_frozen: bool = False
        self.postponed: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.threads: list[Thread] = []

    def now_seconds(self) -> float:
        """Return the time by the clock of the process."""
        return self.world.now + self.ahead_seconds

    def start(self, run: Callable[[], object], name: str) -> Thread:
        """Start a thread."""
        thread = Thread(self, run, name)
        self.threads.append(thread)
        self.world.wake(thread, thread.turn)
        return thread

    def call(self, action: Callable[..., object], *arguments: Any) -> None:
        """Do something that the process does by itself, as soon as it is not frozen."""
        if self.is_dead:
            return
        if self.is_frozen:
            self.postponed.append((self.call, (action, *arguments)))
            return
        before = self.world.process
        self.world.process = self
        try:
            action(*arguments)
        finally:
            self.world.process = before

    def freeze(self) -> None:
        """Let nothing in the process run."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Let the process go on."""
        self.is_frozen = False
        postponed, self.postponed = self.postponed, []
        for action, arguments in postponed:
            self.world.after(self.world.rng.uniform(0, MOST_LATE_SECONDS), action, *arguments)

    def kill(self) -> None:
        """Let nothing in the process ever run again."""
        self.is_dead = True


class Thread:
    """One thread of a process."""

    def __init__(self, process: Process, run: Callable[[], object], name: str) -> None:
        self.process = process
        self.name = name
        self.has_ended: bool = False
        self.turn: int = 0
        """Changes with each wait, so that nothing wakes a later one."""
        self.own: dict[str, Any] = {}
        """The values that belong to this thread alone."""
        self._run = run
        # Whoever starts a thread is not whom it returns to.
        self.greenlet = greenlet(self._begin, process.world.hub)

    def _begin(self, _woken: object) -> None:
        try:
            self._run()
        except Killed:
            pass
        finally:
            self.has_ended = True
