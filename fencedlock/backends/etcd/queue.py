"""What a client knows of one lock's holder and queue, from one read and the events after it.

The code here is pure. It uses no I/O, no clock and no threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

GRACE_SECONDS = 0.25
"""How long the head of the queue has to take a free lock. After that it may be dead, and the next
claim may take the lock.
"""


_MOST_LOGGED = 64
"""The number of events that are remembered, because answers may be older than the last events."""


class LockQueue:
    """The holder and the queue of one lock at a revision.

    The server decides who gets the lock. A LockQueue only says when it is worth asking.

    No events tell who joins the queue, because each of them would wake all other waiters. Instead,
    a claim that takes a place is told which claims are before it.

    No event tells that a waiting process was killed, because its place lives as long as its lease.
    Therefore a claim that lets its turn pass is suspected of being dead. It keeps its place, but
    the others do not wait for it again.
    """

    def __init__(self) -> None:
        self.revision: int = 0
        """The revision up to which all events have been applied; 0 while nothing is known."""
        self._places: dict[str, None] = {}
        """The ids of the claims in the queue, in its order. Used as an ordered set."""
        self._places_at = 0
        """The revision at which the places were read. Since then, places were only removed."""
        self._are_all = True
        """False if more claims than the known ones are before our claims."""
        self._early: tuple[str, int, Iterable[str], bool] | None = None
        """The arguments of the latest call of :meth:`placed` while nothing was known."""
        self._log: deque[tuple[int, str]] = deque(maxlen=_MOST_LOGGED)
        """The claims that have left the queue, each after the revision at which it left."""
        self._suspects: set[str] = set()
        self._ours: set[str] = set()
        self._free_since: float | None = None
        self._called = ""
        """The claim that was told to ask for the free lock. It is told again if nothing has
        happened for a while.
        """
        self._called_at = 0.0

    # --- what the server says

    def read(self, revision: int, *, held: bool, claim_ids: Iterable[str], now: float) -> None:
        """Take over the holder and the queue, in its order, as read at this revision."""
        self.revision = revision
        self._log.clear()
        self._stand(revision, claim_ids)
        self._called = ""
        # The time that a claim has to take the lock counts only from when we see that it is free.
        self._free_since = None if held else now
        if self._early is not None:
            claim_id, later, ahead, are_all = self._early
            self._early = None
            self.placed(claim_id, later, ahead, are_all=are_all)

    def placed(self, claim_id: str, revision: int, ahead: Iterable[str], *, are_all: bool) -> bool:
        """Record that a claim of this client was behind the claims ``ahead`` at this revision.

        ``are_all`` is False if there were other claims before it too. Other claims of this client
        may be among those before it.

        Return False if too much has happened since that revision. The caller must then read
        everything again.
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
        """Know nothing until the next :meth:`read`, because events may have been missed."""
        self.revision = 0

    def held_by(self, claim_id: str, revision: int) -> None:
        """Record a grant to this claim. The claims before it in the queue were passed over."""
        self._free_since, self._called = None, ""
        if claim_id in self._places:
            for ahead in self._places:
                if ahead == claim_id:
                    break
                self._suspects.add(ahead)
        self.left(claim_id, revision)

    def freed(self, now: float) -> None:
        """Record that the hold has ended."""
        self._free_since, self._called = now, ""

    def left(self, claim_id: str, revision: int) -> None:
        """Record that a claim has no place any more."""
        self._log.append((revision, claim_id))
        self._places.pop(claim_id, None)
        self._suspects.discard(claim_id)
        if self._called == claim_id:
            self._called = ""

    # --- our own waiters

    @property
    def is_awaited(self) -> bool:
        """True while at least one claim of this client waits."""
        return bool(self._ours)

    def wait(self, claim_id: str) -> None:
        """Record that a claim of this client waits."""
        self._ours.add(claim_id)

    def give_up(self, claim_id: str) -> None:
        """Record that a claim of this client does not wait any more."""
        self._ours.discard(claim_id)

    def may_pass_over(self, claim_id: str) -> bool:
        """Return True if there are claims before this one, and all have let a turn pass."""
        if not self.revision or not self._are_all or claim_id not in self._places:
            return False
        for place, ahead in enumerate(self._places):
            if ahead == claim_id:
                return place > 0
            if ahead not in self._suspects:
                return False
        return False

    def next(self, now: float) -> tuple[str | None, float | None]:
        """Return which of our claims should ask for the lock now, and when to call this again.

        The claim is None if none should ask. The time is None if only an event can change anything.
        If an event comes before that time, call this then.
        """
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
