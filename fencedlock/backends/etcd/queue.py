"""What a client knows of one lock's holder and queue: from one read, and the events after it.

Pure: no I/O, no clock, no threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

GRACE_SECONDS = 0.25
"""The head of the queue takes a free lock by itself. When it has not done so for so long, the next
one may: it may be dead.
"""


_MOST_LOGGED = 64
"""Events that are remembered, for answers that are older than they are."""


class LockQueue:
    """Holder and queue of one lock, as of a revision.

    The server decides who gets the lock; this says when it is worth asking.

    Nobody is told who joins, as each would wake all others: a claim that takes its place is told
    who stands before it.

    Nobody hears of a process that was killed while it waited, for its place lives as long as its
    lease. So whoever lets its turn pass is suspected, keeps its place, and is not waited for again.
    """

    def __init__(self) -> None:
        self.revision: int = 0
        """Events up to it are in; 0 when nothing is known."""
        self._places: dict[str, None] = {}
        self._places_at = 0
        """The revision at which they were read; since then they only became fewer."""
        self._are_all = True
        """False if more than these stand before our claims."""
        self._early: tuple[str, int, Iterable[str], bool] | None = None
        """The latest word of :meth:`placed` that came while nothing was known."""
        self._log: deque[tuple[int, str]] = deque(maxlen=_MOST_LOGGED)
        """Who has left the queue, and at which revision."""
        self._suspects: set[str] = set()
        self._ours: set[str] = set()
        self._free_since: float | None = None
        self._called = ""
        """Who was told to ask for the lock, since it is free; told again when nothing came of it
        for a while.
        """
        self._called_at = 0.0

    # --- what the server says

    def read(self, revision: int, *, held: bool, claim_ids: Iterable[str], now: float) -> None:
        """The holder and the queue, in its order, as they were at this revision."""
        self.revision = revision
        self._log.clear()
        self._stand(revision, claim_ids)
        self._called = ""
        # Who takes it has had its time only if that was seen.
        self._free_since = None if held else now
        if self._early is not None:
            claim_id, later, ahead, are_all = self._early
            self._early = None
            self.placed(claim_id, later, ahead, are_all=are_all)

    def placed(self, claim_id: str, revision: int, ahead: Iterable[str], *, are_all: bool) -> bool:
        """At this revision, a claim of ours stood behind these, and others if they are not all; others of ours may be among them.

        False if too much has happened since then: all must be read anew.
        """
        if not self.revision:
            if self._early is None or revision > self._early[1]:
                self._early = claim_id, revision, ahead, are_all
        elif revision > self._places_at:
            if len(self._log) == _MOST_LOGGED and self._log[0][0] > revision:
                return False
            places = dict.fromkeys(ahead)
            if not are_all:
                places.update(dict.fromkeys(other for other in self._places if other in self._ours))
            places.setdefault(claim_id)
            gone = {other for at, other in self._log if at > revision}
            self._stand(revision, (other for other in places if other not in gone), are_all=are_all)
        return True

    def _stand(self, revision: int, claim_ids: Iterable[str], *, are_all: bool = True) -> None:
        self._places, self._places_at, self._are_all = dict.fromkeys(claim_ids), revision, are_all
        self._suspects &= self._places.keys()

    def forget(self) -> None:
        """Events may have been missed: nothing is known until the next :meth:`read`."""
        self.revision = 0

    def held_by(self, claim_id: str, revision: int) -> None:
        """This claim was granted the lock, and everybody before it in the queue was passed over."""
        self._free_since, self._called = None, ""
        if claim_id in self._places:
            for ahead in self._places:
                if ahead == claim_id:
                    break
                self._suspects.add(ahead)
        self.left(claim_id, revision)

    def freed(self, now: float) -> None:
        """The hold has ended."""
        self._free_since, self._called = now, ""

    def left(self, claim_id: str, revision: int) -> None:
        """A claim has no place any more."""
        self._log.append((revision, claim_id))
        self._places.pop(claim_id, None)
        self._suspects.discard(claim_id)
        if self._called == claim_id:
            self._called = ""

    # --- our own waiters

    @property
    def is_awaited(self) -> bool:
        """True while a claim of this client waits."""
        return bool(self._ours)

    def wait(self, claim_id: str) -> None:
        """A claim of this client waits."""
        self._ours.add(claim_id)

    def give_up(self, claim_id: str) -> None:
        """A claim of this client waits no more."""
        self._ours.discard(claim_id)

    def may_pass_over(self, claim_id: str) -> bool:
        """True if there are claims before this one, and all of them have let a turn pass."""
        if not self.revision or not self._are_all or claim_id not in self._places:
            return False
        for place, ahead in enumerate(self._places):
            if ahead == claim_id:
                return place > 0
            if ahead not in self._suspects:
                return False
        return False

    def next(self, now: float) -> tuple[str | None, float | None]:
        """Which of our claims should ask for the lock now, if any; and when to call this again, if no event comes before."""
        if self._free_since is None or not self.revision or not self._ours:
            return None, None
        passed: list[str] = []
        patience = 0
        for claim_id in self._places:
            if claim_id in self._ours:
                due = self._free_since + GRACE_SECONDS * patience
                if now < due:
                    return None, due
                self._suspects.update(passed)
                if self._called == claim_id and now < self._called_at + GRACE_SECONDS:
                    return None, self._called_at + GRACE_SECONDS
                self._called, self._called_at = claim_id, now
                return claim_id, now + GRACE_SECONDS
            passed.append(claim_id)
            if claim_id not in self._suspects:
                patience += 1
        return None, None
