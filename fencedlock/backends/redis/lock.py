"""The scripts of this room, called for one lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fencedlock.backends.base import ClaimAnswer, LockInfo, NotOurs, ReleaseAnswer, Released, Waiter
from fencedlock.backends.redis import scripts
from fencedlock.backends.redis.scripts import ScriptCall, bulks
from fencedlock.errors import BackendError
from fencedlock.hold import MOST_SPAN_SECONDS

if TYPE_CHECKING:
    from fencedlock.backends.redis.backend import RedisBackend
    from fencedlock.hold import Claim, Hold


class RedisLock:
    """Implements :class:`fencedlock.backends.base.BoundLock`."""

    __slots__ = ("_acquire", "_backend", "_fixed", "_keys", "_release", "_renew", "name")

    def __init__(self, backend: RedisBackend, name: str, keys: tuple[bytes, ...]) -> None:
        self.name: str = name
        self._backend = backend
        self._keys = keys
        self._fixed: dict[tuple[bool, float], bytes] = {}
        """The arguments of acquire.lua that are the same for all claims of a kind: (fair, lease in seconds)."""
        self._acquire = ScriptCall(scripts.ACQUIRE, keys)
        self._renew = ScriptCall(scripts.RENEW, keys)
        self._release = ScriptCall(scripts.RELEASE, keys)

    def acquire(self, claim: Claim, *, queue: bool, timeout_seconds: float) -> ClaimAnswer:
        before_us = claim.unanswered

        def make(not_after_us: int) -> bytes:
            claim.unanswered = max(before_us, not_after_us)
            return self.pack_acquire(claim, b"queue" if queue else b"try", not_after_us)

        answer, sent = self._backend.ask(scripts.ACQUIRE, make, self._backend.read_claim_answer, timeout_seconds)
        if sent == 1:
            claim.unanswered = before_us
        return answer

    def pack_acquire(self, claim: Claim, mode: bytes, not_after_us: int) -> bytes:
        """The call of acquire.lua."""
        backend = self._backend
        kind = (claim.fair, claim.lease_seconds)
        fixed = self._fixed.get(kind)
        if fixed is None:
            lease_ms = round(claim.lease_seconds * 1000)
            span_ms = min(lease_ms, round(MOST_SPAN_SECONDS * 1000))
            fixed = bulks(b"1" if claim.fair else b"0", b"%d" % lease_ms, b"%d" % span_ms, *backend.doors)
            self._fixed[kind] = fixed
        return self._acquire.pack(
            claim.id.encode(),
            mode,
            b"%d" % backend.floors.of(self.name),
            b"%d" % not_after_us,
            claim.owner.holder,
            fixed=fixed,
            fixed_count=5,
        )

    def pack_renew(self, hold: Hold, not_after_us: int, *, exact: bool = False) -> bytes:
        """The call of renew.lua."""
        return self._renew.pack(
            hold.claim_id.encode(),
            b"%d" % hold.number,
            b"%d" % round(hold.lease_seconds * 1000),
            b"%d" % not_after_us,
            b"%d" % hold.operation,
            b"%d" % hold.depth,
            b"1" if exact else b"0",
        )

    def release(self, hold: Hold, timeout_seconds: float, *, attempts: int = 1) -> ReleaseAnswer:
        packed = self._release.pack(
            hold.claim_id.encode(),
            b"%d" % hold.number,
            b"%d" % hold.unanswered,
            *self._backend.doors,
        )
        reply, sent = self._backend.call(scripts.RELEASE, packed, timeout_seconds, attempts=attempts)
        if reply == b"released":
            return Released()
        return NotOurs(ended=_number(reply, b"lost"), replayed=sent > 1)

    def forsake(self, hold: Hold, timeout_seconds: float) -> None:
        """Nothing to do: each hold has a lease of its own."""

    def withdraw(self, claim: Claim, timeout_seconds: float) -> None:
        packed = ScriptCall(scripts.WITHDRAW, self._keys).pack(
            claim.id.encode(),
            b"%d" % claim.unanswered,
            *self._backend.doors,
        )
        self._backend.call(scripts.WITHDRAW, packed, timeout_seconds)

    def force_release(self, token: int, timeout_seconds: float) -> bool:
        packed = ScriptCall(scripts.FORCE_RELEASE, self._keys).pack(b"%d" % token, *self._backend.doors)
        reply, sent = self._backend.call(scripts.FORCE_RELEASE, packed, timeout_seconds)
        return reply == b"forced" or sent > 1

    def raise_floor(self, token: int, timeout_seconds: float) -> None:
        packed = ScriptCall(scripts.RAISE_FLOOR, self._keys).pack(b"%d" % token)
        self._backend.call(scripts.RAISE_FLOOR, packed, timeout_seconds, attempts=2)

    def inspect(self, timeout_seconds: float) -> LockInfo:
        packed = ScriptCall(scripts.INSPECT, self._keys).pack()
        reply = self._backend.call_for_array(scripts.INSPECT, packed, timeout_seconds)
        try:
            owner, holder, token, count, remaining_ms, issued, line = reply
            waiters = tuple(
                Waiter(claim.decode(), text.decode(), left_ms / 1000)
                for claim, left_ms, text in zip(line[::3], line[1::3], line[2::3], strict=True)
            )
            return LockInfo(
                name=self.name,
                locked=bool(owner),
                owner=owner.decode() or None,
                holder=holder.decode() or None,
                token=int(token) if token else None,
                count=int(count),
                remaining=remaining_ms / 1000,
                issued=int(issued) if issued else None,
                waiters=waiters,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise BackendError(f"what stands at the lock's keys makes no sense: {reply!r:.200}", lock=self.name) from error


def _number(reply: bytes, word: bytes) -> int:
    """The number in an answer of a word and a number."""
    try:
        said, number = reply.split(b" ")
        if said == word:
            return int(number)
    except (AttributeError, ValueError):
        pass
    raise BackendError(f"the lock server's reply makes no sense: {reply!r:.200}")
