"""What a client knows of one lock's holder and queue: from one read, and the events after it. Pure: no I/O, no clock, no threads."""

from __future__ import annotations

from collections.abc import Iterable

GRACE_SECONDS = 0.25
"""The head of the queue takes a free lock by itself. When it has not done so for so long, the next one may: it may be dead."""


class LockQueue:
    """Holder and queue of one lock, as of a revision. The server decides who gets the lock; this says when it is worth asking.

    Nobody hears of a process that was killed while it waited, for its place lives as long as its lease. So whoever lets its turn pass is
    suspected, keeps its place, and is not waited for again.
    """

    def __init__(self) -> None:
        self.revision: int = 0
        """Events up to it are in; 0 when nothing is known."""
        self._places: dict[str, None] = {}
        self._suspects: set[str] = set()
        self._ours: set[str] = set()
        self._free_since: float | None = None
        self._called = ""
        """Who was told to ask for the lock, since it is free; told again when nothing came of it for a while."""
        self._called_at = 0.0

    # --- what the server says

    def read(self, revision: int, *, held: bool, claim_ids: Iterable[str], now: float) -> None:
        """The holder and the queue, in its order, as they were at this revision."""
        self.revision = revision
        self._places = dict.fromkeys(claim_ids)
        self._suspects &= self._places.keys()
        self._called = ""
        self._free_since = None if held else now  # who takes it has had its time only if that was seen

    def forget(self) -> None:
        """Events may have been missed: nothing is known until the next :meth:`read`."""
        self.revision = 0

    def held_by(self, claim_id: str) -> None:
        """This claim was granted the lock, and everybody before it in the queue was passed over."""
        self._free_since, self._called = None, ""
        if claim_id in self._places:
            for ahead in self._places:
                if ahead == claim_id:
                    break
                self._suspects.add(ahead)

    def freed(self, now: float) -> None:
        """The hold has ended."""
        self._free_since, self._called = now, ""

    def joined(self, claim_id: str) -> None:
        """A claim has its place at the end of the queue."""
        self._places[claim_id] = None

    def left(self, claim_id: str) -> None:
        """A claim has no place any more."""
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
        if not self.revision or claim_id not in self._places:
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
