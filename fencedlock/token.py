"""Fencing tokens: numbers that a store compares to refuse a holder whose lease has ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FencingToken:
    """The number of one outermost hold of a lock; it is greater than all issued before it.

    ``lock`` is the lock's name, ``value`` the number. Tokens of one lock can be ordered. Ordering
    tokens of two locks (``<``, ``<=``, ``>``, ``>=``) raises ``TypeError``, because the numbers of
    two locks are unrelated. The truth value of a token is always True.

    A token is deliberately not an ``int``. Database drivers bind subclasses of ``int`` as text or
    as their ``repr``, and MySQL accepts stale tokens when it compares them with text. Bind
    ``int(token)``.

    The idea is from Martin Kleppmann, "How to do distributed locking" (2016).
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
                f"a FencingToken can be ordered only with tokens, not with {type(other).__name__}: "
                "compare int(token)"
            )
        if other.lock != self.lock:
            raise TypeError(f"tokens of two locks, {self.lock!r} and {other.lock!r}, have no order")
        return other.value
