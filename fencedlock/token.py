"""Fencing tokens: what a store compares to refuse a holder whose lease has ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FencingToken:
    """The number of one outermost hold of one lock, greater than every number issued for that lock before it.

    ``lock`` is the lock's name, ``value`` the number. Tokens of one lock are ordered; comparing the
    order of tokens of two locks raises ``TypeError``, for it means nothing. A token is always true.

    It is deliberately not an ``int``: database drivers bind subclasses of ``int`` as text or as
    their ``repr``, and a comparison with text accepts stale tokens in MySQL. Bind ``int(token)``.

    The idea is Martin Kleppmann's, "How to do distributed locking" (2016).
    """

    lock: str
    value: int

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        return str(self.value)

    def __bool__(self) -> bool:
        return True

    def __lt__(self, other: FencingToken) -> bool:
        return self.value < self._comparable(other)

    def __le__(self, other: FencingToken) -> bool:
        return self.value <= self._comparable(other)

    def __gt__(self, other: FencingToken) -> bool:
        return self.value > self._comparable(other)

    def __ge__(self, other: FencingToken) -> bool:
        return self.value >= self._comparable(other)

    def _comparable(self, other: FencingToken) -> int:
        if not isinstance(other, FencingToken):
            raise TypeError(
                f"a FencingToken is ordered among tokens only, not with {type(other).__name__}: "
                "compare int(token)"
            )
        if other.lock != self.lock:
            raise TypeError(f"tokens of two locks, {self.lock!r} and {other.lock!r}, have no order")
        return other.value
