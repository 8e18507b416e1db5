"""The operations on one lock. Each of them calls one script."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote, unquote

from fencedlock.backends.redis.connections import left_of
from fencedlock.backends.redis.scripts import bulks, whole_ms
from fencedlock.backends.redis.server import RedisServer
from fencedlock.backends.redis.server_time import MOST_LATE, clock_jumps
from fencedlock.clock import now_seconds
from fencedlock.core.answers import RELEASED, ClaimAnswer, NotOurs, ReleaseAnswer
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.info import LockInfo, Waiter
from fencedlock.errors import BackendError, BackendUnavailableError


class RedisTicket:
    """Remembers until when an unanswered packet of a claim may still be executed."""

    __slots__ = ("not_after_us",)

    def __init__(self) -> None:
        self.not_after_us: int = 0
        """The server's time, in µs, after which it executes no unanswered packet any more.

        0 if all packets were answered.
        """

    @property
    def unanswered(self) -> bool:
        """True if a packet of the claim was not answered."""
        return self.not_after_us > 0


class RedisLock:
    """Implements :class:`fencedlock.core.backend.BoundLock`."""

    __slots__ = ("_keys", "_scripts", "_server", "name")

    def __init__(self, server: RedisServer, name: str, keys: tuple[str, ...]) -> None:
        self.name: str = name
        self._server = server
        self._scripts = server.scripts
        self._keys = bulks(*keys)

    def begin(self) -> RedisTicket:
        return RedisTicket()

    def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        server, late = self._server, 0
        ticket: RedisTicket = claim.ticket
        before_us = ticket.not_after_us
        # A claim that has waited takes no second place. It may have been granted the lock meanwhile
        # by a message that others have read, and anybody who knows the id of a waiting claim could
        # let it in by a forged message.
        mode = "try" if not join else "queue" if claim.issued is None else "beat"
        while late < MOST_LATE:
            asked_at = now_seconds()
            not_after_us = int((asked_at + timeout_seconds) * 1e6 + server.ahead_us)
            pack = partial(self.pack_acquire, claim, not_after_us, mode)
            # This is set before the request is sent, because another thread may close the client
            # meanwhile. It is no call of max(), because each acquisition runs it.
            ticket.not_after_us = not_after_us if not_after_us > before_us else before_us  # noqa: FURB136
            try:
                reply, sent = server.connections.converse(
                    pack(), timeout_seconds, asked_at, repack=pack
                )
            except BackendUnavailableError as error:
                if not error.sent:
                    ticket.not_after_us = before_us
                raise
            if type(reply) is not bytes:
                reply, sent = server.call_with_text(
                    self._scripts.acquire, pack(), asked_at + timeout_seconds, 1, reply, sent
                )
            if sent == 1:
                ticket.not_after_us = before_us
            answer = server.read_claim_answer(claim, reply, asked_at)
            if answer is not None:
                return answer
            late += 1
            timeout_seconds = left_of(timeout_seconds, asked_at)
        raise clock_jumps()

    def pack_acquire(self, claim: Claim, not_after_us: int, mode: str) -> bytes:
        """Return the packed call of acquire.lua."""
        # This is one f-string, because each acquisition runs it. All of its parts are ASCII, so
        # their lengths in characters and in bytes are the same.
        claim_id, server = claim.id, self._server
        floors = server.floors
        floor = str(
            floors.of(self.name, int(now_seconds() * 1e6)) if floors.of_lifted else floors.of_all
        )
        not_after = str(not_after_us)
        return (
            f"{self._scripts.acquire.head}{self._keys}${len(claim_id)}\r\n{claim_id}\r\n"
            f"${len(floor)}\r\n{floor}\r\n${len(not_after)}\r\n{not_after}\r\n"
            f"{server.acquire_arguments[claim.owner.holder, claim.lease_seconds, mode, claim.fair]}"
        ).encode()

    def pack_renew(self, hold: Hold, not_after_us: int) -> bytes:
        """Return the packed call of renew.lua."""
        # The operation is read before the lease and the depth that belong to it, because the thread
        # that holds the lock may change them all meanwhile. The old lease with the latest operation
        # number would undo a renewal that has been answered.
        operation = hold.operation
        return self._scripts.renew.pack(
            self._keys,
            hold.claim_id,
            str(hold.token),
            str(whole_ms(hold.lease_seconds)),
            str(not_after_us),
            str(operation),
            str(hold.depth),
        )

    def release(self, hold: Hold, timeout_seconds: float, attempts: int = 1) -> ReleaseAnswer:
        server, packed = self._server, self.pack_release(hold)
        asked_at = now_seconds()
        reply, sent = server.connections.converse(packed, timeout_seconds, asked_at, attempts)
        if type(reply) is not bytes:
            reply, sent = server.call_with_text(
                self._scripts.release, packed, asked_at + timeout_seconds, attempts, reply, sent
            )
        if reply == b"+released\r\n":
            return RELEASED
        return released_or_not(reply, sent)

    def pack_release(self, hold: Hold) -> bytes:
        """Return the packed call of release.lua."""
        claim, token, server = hold.claim, str(hold.token), self._server
        claim_id, not_after_us = claim.id, claim.ticket.not_after_us
        arguments = (
            bulks(str(not_after_us), server.channels) if not_after_us else server.release_arguments
        )
        return (  # one f-string, as in pack_acquire
            f"{self._scripts.release.head}{self._keys}${len(claim_id)}\r\n{claim_id}\r\n"
            f"${len(token)}\r\n{token}\r\n{arguments}"
        ).encode()

    def keep(
        self, hold: Hold, keep_seconds: float, timeout_seconds: float, attempts: int = 1
    ) -> ReleaseAnswer:
        packed = self.pack_keep(hold, keep_seconds)
        reply, sent = self._server.call(self._scripts.keep, packed, timeout_seconds, attempts)
        return released_or_not(reply, sent)

    def pack_keep(self, hold: Hold, keep_seconds: float) -> bytes:
        """Return the packed call of keep.lua."""
        return self._scripts.keep.pack(
            self._keys,
            hold.claim_id,
            str(hold.token),
            str(whole_ms(keep_seconds)),
            str(hold.claim.ticket.not_after_us),
            self._server.channels,
        )

    def detach(
        self, hold: Hold, digest: str, lease_seconds: float, timeout_seconds: float
    ) -> ReleaseAnswer:
        packed = self._scripts.detach.pack(
            self._keys,
            hold.claim_id,
            str(hold.token),
            digest,
            str(whole_ms(lease_seconds)),
            str(hold.claim.ticket.not_after_us),
            self._server.channels,
        )
        reply, sent = self._server.call(self._scripts.detach, packed, timeout_seconds)
        return released_or_not(reply, sent)

    def attach(self, claim: Claim, digest: str, timeout_seconds: float) -> ClaimAnswer:
        server, lease_ms = self._server, whole_ms(claim.lease_seconds)

        def make(not_after_us: int) -> bytes:
            return self._scripts.attach.pack(
                self._keys,
                claim.id,
                digest,
                str(not_after_us),
                f"{lease_ms} {claim.owner.holder}",
                str(lease_ms),
                server.channels,
            )

        answer: ClaimAnswer = server.ask_in_time(
            self._scripts.attach, make, partial(server.read_claim_answer, claim), timeout_seconds
        )
        return answer

    def abandon(self, hold: Hold, timeout_seconds: float) -> None:
        """Do nothing, because each hold has a lease of its own."""

    def withdraw(self, claim: Claim, timeout_seconds: float) -> None:
        self._server.call(self._scripts.withdraw, self.pack_withdraw(claim), timeout_seconds)

    def pack_withdraw(self, claim: Claim) -> bytes:
        """Return the packed call of withdraw.lua."""
        return self._scripts.withdraw.pack(
            self._keys, claim.id, str(claim.ticket.not_after_us), self._server.channels
        )

    def force_release(self, token: int, timeout_seconds: float) -> bool:
        packed = self._scripts.force_release.pack(self._keys, str(token), self._server.channels)
        reply, sent = self._server.call(self._scripts.force_release, packed, timeout_seconds)
        return reply == b"+forced\r\n" or sent > 1

    def request_release(self, reason: str, timeout_seconds: float) -> bool:
        script = self._scripts.request_release
        packed = script.pack(self._keys, quote(reason, safe=""), self._server.channels)
        reply, _ = self._server.call(script, packed, timeout_seconds, attempts=2)
        return reply == b"+asked\r\n"

    def raise_floor(self, token: int, timeout_seconds: float) -> None:
        packed = self._scripts.raise_floor.pack(self._keys, str(token))
        self._server.call(self._scripts.raise_floor, packed, timeout_seconds, attempts=2)

    def inspect(self, timeout_seconds: float) -> LockInfo:
        reply = self._server.call_for_array(
            self._scripts.inspect, self._scripts.inspect.pack(self._keys), timeout_seconds
        )
        try:
            owner, holder, token, count, remaining_ms, issued, ahead_us, wanted, line = reply
            waiters = tuple(
                Waiter(claim.decode(), _host_and_thread(text), left_ms / 1000)
                for claim, left_ms, text in zip(line[::3], line[1::3], line[2::3], strict=True)
            )
            return LockInfo(
                name=self.name,
                locked=bool(owner),
                owner=owner.decode().rpartition(":")[2] or None,
                holder=_host_and_thread(holder) or None,
                token=int(token) if token else None,
                count=int(count),
                remaining=remaining_ms / 1000,
                issued=int(issued) if issued else None,
                waiters=waiters,
                # A token is the server's time of its grant in µs, plus ahead_us.
                held_since=(int(token) - int(ahead_us)) / 1e6 if token else None,
                detached=owner.startswith(b"detached:"),
                wanted=unquote(wanted.decode()) or None,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise BackendError(
                f"the values of the lock's keys are not those of a lock: {reply!r:.200}",
                lock=self.name,
            ) from error


def _host_and_thread(holder: bytes) -> str:
    """Return the holder for people to read, without the lease in ms that is stored before it."""
    return holder.decode().partition(" ")[2]


def released_or_not(reply: bytes, sent: int) -> ReleaseAnswer:
    """Return what the answer to a release says that was sent so often."""
    if reply == b"+released\r\n":
        return RELEASED
    return NotOurs(ended=_number(reply, b"+lost"), replayed=sent > 1)


def _number(reply: bytes, word: bytes) -> int:
    """Return the number in an answer that consists of this word and a number."""
    try:
        said, number = reply.split()
        if said == word:
            return int(number)
    except (AttributeError, ValueError):
        pass
    raise BackendError(f"the lock server's reply makes no sense: {reply!r:.200}")
