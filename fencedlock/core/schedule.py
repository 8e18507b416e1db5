"""When the beats of a client are due, without threads and clocks."""

from __future__ import annotations

from typing import Any

EARLY_SHARE = 0.1
"""The share of its delay by which a beat may be sent early, together with a beat that is due. One
exchange for many beats costs less than many exchanges.
"""

MOST_AT_ONCE = 2000
"""The largest number of beats of one schedule in a round. After that the others have their turn."""


class Schedule(dict[Any, float]):
    """Targets that get a beat every ``delay_seconds``, ordered by due time.

    Maps each target to the local time of its next beat.
    """

    def __init__(self, delay_seconds: float) -> None:
        self.delay_seconds: float = delay_seconds


class Schedules:
    """The schedules of all delays. A target is in one of them, or is a newcomer.

    The targets of each delay are in a schedule of their own, so the cost of adding and discarding a
    target does not depend on the number of targets. The caller has the mutex of the client in all
    methods.
    """

    def __init__(self) -> None:
        self._by_delay: dict[float, Schedule] = {}
        self.newcomers: dict[Any, tuple[float, float]] = {}
        """Targets that are in no schedule yet. Maps each to its delay in seconds and to the local
        time of its next beat.

        Each acquisition adds its hold here, and most releases remove it again. They do so by single
        operations on the dictionary, without the mutex, which would take longer than these.
        """

    def plan(self, target: Any, delay_seconds: float, due: float) -> None:
        """Send beats for the target with this delay, the first at this time. Forget old plans."""
        self.settle()  # so that earlier targets stay before this one
        # This comes first, because Ctrl-C in between must not leave the target without a beat.
        self.newcomers[target] = delay_seconds, due
        if target.schedule is not None:
            target.schedule.pop(target, None)

    def drop(self, target: Any) -> None:
        """Send no more beats for the target."""
        self.newcomers.pop(target, None)
        target.schedule.pop(target, None)

    def settle(self) -> None:
        """Move the newcomers into their schedules."""
        for target in list(self.newcomers):
            planned = self.newcomers.get(target)
            if planned is None:
                continue
            delay_seconds, due = planned
            schedule = self._by_delay.get(delay_seconds)
            if schedule is None:
                schedule = self._by_delay[delay_seconds] = Schedule(delay_seconds)
            # The target is added to the schedule before it is removed here. So a thread that does
            # not find it here finds it there, and Ctrl-C can't leave it without a beat.
            target.schedule = schedule
            schedule[target] = due
            if self.newcomers.pop(target, None) is None:
                schedule.pop(target, None)  # it was discarded meanwhile

    def targets(self) -> list[Any]:
        """Return all targets."""
        return [
            *list(self.newcomers),
            *(target for schedule in self._by_delay.values() for target in schedule),
        ]

    def next_ones(self) -> list[tuple[Any, float]]:
        """Return the next target of each delay, with the local time of its beat."""
        self.settle()
        for delay in [delay for delay, schedule in self._by_delay.items() if not schedule]:
            del self._by_delay[delay]
        return [next(iter(schedule.items())) for schedule in self._by_delay.values()]

    def next_due(self) -> float:
        """Return the local time at which the next beat is due, infinity if none is planned."""
        return min((due for _, due in self.next_ones()), default=float("inf"))

    def take_due(self, now: float) -> list[Any]:
        """Return the targets whose beats are due, and plan their next beats."""
        self.settle()
        taken = []
        for delay_seconds, schedule in self._by_delay.items():
            due: list[Any] = []
            for target, due_at in schedule.items():
                latest = now + EARLY_SHARE * delay_seconds if due else now
                if due_at > latest or len(due) == MOST_AT_ONCE:
                    break
                due.append(target)
            for target in due:
                del schedule[target]
                schedule[target] = now + delay_seconds  # the outcome of this beat may change that
            taken += due
        return taken
