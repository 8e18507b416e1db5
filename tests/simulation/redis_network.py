"""A simulated Redis server, and the connections and inboxes by which a client reaches it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import redis.exceptions

from fencedlock.backends.redis.inbox import _Stream
from fencedlock.core.backend import Listener
from fencedlock.errors import BackendError, BackendUnavailableError, FencedLockError
from tests.simulation.network import Link
from tests.simulation.primitives import Waiters, here, now_seconds
from tests.simulation.redis_scripts import lua_scripts
from tests.simulation.redis_store import RedisStore
from tests.simulation.world import Process, World

MOST_DOUBT_SECONDS = 0.5
"""How long it takes at most until an inbox knows that it is connected to another server."""

LEFT_SHARE = 0.5
"""The share of the inboxes that stay connected to a server that is no longer the master."""

OK, CUT, SILENT, REFUSED = "ok", "cut", "silent", "refused"


class Server:
    """A Redis server."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ahead_seconds: float = 1_700_000_000 + world.rng.uniform(0, 1e6)
        """What the server's clock shows in addition to the time of the world."""
        self.store = self._empty_store()
        self.is_down: bool = False
        self.is_frozen: bool = False
        self.starts: int = 0
        """The number of its starts. A connection belongs to one of them."""
        self.inboxes: dict[str, list[Inbox]] = {}
        """The inboxes by their channels."""
        self.left_behind: list[Inbox] = []
        """The inboxes that are still connected to the server before, which is a replica now.
        Messages travel to them, but do not count them.
        """
        self._loaded: dict[str, str] = {}
        self._postponed: list[Callable[[], object]] = []
        self.replicate()

    def _empty_store(self) -> RedisStore:
        return RedisStore(self.time_us, self._send, self._listeners)

    def time_us(self) -> int:
        return int((self.world.now + self.ahead_seconds) * 1e6)

    def execute(self, commands: list[list[str]]) -> list[Any]:
        """Return the replies to these commands."""
        return [self._execute(name.upper(), arguments) for name, *arguments in commands]

    def _execute(self, name: str, arguments: list[str]) -> Any:
        if name in ("EVALSHA", "EVAL"):
            text, count = arguments[0], int(arguments[1])
            if name == "EVAL":
                sha = hashlib.sha1(text.encode("latin-1"), usedforsecurity=False).hexdigest()
                self._loaded[sha] = text
            elif text in self._loaded:
                text = self._loaded[text]
            else:
                return redis.exceptions.NoScriptError("No matching script")
            rest = arguments[2:]
            return lua_scripts().run(self.store, text, rest[:count], rest[count:])
        reply = self.store.command(name, *arguments)
        if isinstance(reply, list):
            return [each.encode() if isinstance(each, str) else each for each in reply]
        return reply

    def when_awake(self, action: Callable[[], object]) -> None:
        """Do something as soon as the server is not frozen."""
        if self.is_frozen:
            self._postponed.append(action)
        else:
            action()

    # --- messages

    def _listeners(self, channel: str) -> int:
        return len(self.inboxes.get(channel, ()))

    def _send(self, channel: str, message: str) -> int:
        for inbox in [*self.inboxes.get(channel, []), *self.left_behind]:
            if inbox.channel == channel:
                inbox.send(message.encode())
        return self._listeners(channel)

    # --- faults

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        self.is_frozen = False
        postponed, self._postponed = self._postponed, []
        for action in postponed:
            action()

    def kill(self, but: Sequence[Inbox] = ()) -> None:
        """End the process of the server. Whoever is connected learns of that, but these inboxes."""
        self.is_down = True
        self.thaw()  # what has arrived meanwhile learns that nobody is there
        for inbox in self.all_inboxes():
            if inbox not in but:
                inbox.cut()

    def all_inboxes(self) -> list[Inbox]:
        """Return the inboxes that are connected, to this server or to the one before."""
        return [
            *(inbox for inboxes in self.inboxes.values() for inbox in inboxes),
            *self.left_behind,
        ]

    def cut(self, link: Link) -> None:
        """Cut the inboxes of a network. Its other connections know by its number of cuts."""
        for inbox in self.all_inboxes():
            if inbox._connector.link is link:
                inbox.cut()

    def forget(self, process: Process) -> None:
        """Cut the inboxes of a process that was killed."""
        for inbox in self.all_inboxes():
            if inbox._connector.process is process:
                inbox.cut()

    def start(self, *, with_data: bool = True) -> None:
        """Start again after :meth:`kill`."""
        self.is_down = False
        self.starts += 1
        self._loaded = {}
        if not with_data:
            self.store = self._empty_store()

    def forget_scripts(self) -> None:
        """Forget the scripts that were sent, as ``SCRIPT FLUSH`` does."""
        self._loaded = {}

    def replicate(self) -> None:
        """Copy the data, as they are on a replica that lags behind from now on."""
        self._replica = copy.deepcopy((self.store.data, self.store.expires_ms))

    def fail_over(self) -> None:
        """Let the replica take over, with the data that it has.

        As behind an address that moves, some inboxes stay connected to the server before.
        """
        if not self.is_down:
            for inboxes in self.inboxes.values():
                for inbox in list(inboxes):
                    if self.world.rng.random() < LEFT_SHARE:
                        inboxes.remove(inbox)
                        self.left_behind.append(inbox)
            self.kill(but=self.left_behind)
            self.start()
            self.store.data, self.store.expires_ms = self._replica
            self.replicate()


class Connector:
    """Names the server and the network of a process, for connections that are made by it."""

    exceptions = redis.exceptions

    def __init__(self, process: Process, server: Server, link: Link) -> None:
        self.process = process
        self.server = server
        self.link = link


class Connections:
    """The same for its users as :class:`fencedlock.backends.redis.connections.Connections`."""

    def __init__(self, connector: Connector, _connect_timeout_seconds: float) -> None:
        self._connector = connector
        self._place = (-1, -1)
        self.on_new: Callable[[], object] = lambda: None
        self.on_switch: Callable[[], object] = lambda: None

    def ask(self, packed: bytes, timeout_seconds: float) -> Any:
        reply = self.converse(packed, timeout_seconds, now_seconds(), 1, self._ask)[0]
        if isinstance(reply, Exception):
            raise self.refusal(reply) from reply
        return reply

    def _ask(self) -> None:
        """Marks a question whose reply may have any form."""

    def converse(
        self,
        packed: bytes,
        timeout_seconds: float,
        now: float,
        attempts: int = 1,
        talk: Any = None,
        repack: Callable[[], bytes] | None = None,
    ) -> tuple[Any, int]:
        sent, began_at, until, again = 0, now, now + timeout_seconds, False
        while True:
            if self._connect() and repack is not None:
                packed = repack()
            seconds = max(0.0, until - now_seconds())
            outcome, replies = self._exchange(split(packed), seconds)
            if outcome == OK:
                return (replies if isinstance(talk, partial) else replies[0]), sent + 1
            sent += outcome != REFUSED
            self._place = (-1, -1)
            if outcome == CUT and not again and now_seconds() < until:
                again = True
                continue
            if attempts > 1 and outcome != REFUSED:
                attempts -= 1
                until = now_seconds() + timeout_seconds
                continue
            error = BackendUnavailableError(f"the lock server gave no answer ({outcome})")
            error.sent, error.asked_at = sent > 0, began_at
            raise error

    def _connect(self) -> bool:
        """Return True if there is a new connection."""
        server, link = self._connector.server, self._connector.link
        place = server.starts, link.cuts
        if place == self._place or server.is_down:
            return False
        self._place = place
        self.on_new()
        return True

    def _exchange(self, commands: list[list[str]], seconds: float) -> tuple[str, list[Any]]:
        world, link, server = here(), self._connector.link, self._connector.server
        if server.is_down:
            return REFUSED, []
        waiters, outcome, replies = Waiters(), SILENT, []
        place, is_lost = self._place, world.rng.random() < link.lost_share

        def arrive() -> None:
            server.when_awake(execute)

        def execute() -> None:
            # A packet for a server that was restarted since, or on a connection that was cut while
            # it was on its way, may have been executed before that, or is lost.
            nonlocal replies
            if server.is_down or server.starts != place[0]:
                link.trip(partial(tell, CUT), up=False)
                return
            replies = server.execute(commands)
            link.trip(partial(tell, CUT if is_lost or link.cuts != place[1] else OK), up=False)

        def tell(how: str) -> None:
            nonlocal outcome
            outcome = how
            waiters.wake_all()

        link.trip(arrive, up=True)
        waiters.wait(seconds)
        return outcome, replies

    def refusal(self, error: Exception) -> FencedLockError:
        if isinstance(error, FencedLockError):
            return error
        return BackendError(f"the lock server refused: {error}")

    def trim(self, _now: float) -> None:
        return None

    def close(self) -> None:
        pass


class Inbox:
    """The same for its users as :class:`fencedlock.backends.redis.inbox.Inbox`."""

    def __init__(
        self,
        _connections: Connections,
        connector: Connector,
        channel: str,
        _timeout_seconds: float,
        may_be_issued: Callable[[int], bool],
    ) -> None:
        self._connector = connector
        self.channel = channel
        self._may_be_issued = may_be_issued
        self._listener: Listener | None = None
        self._tried = Waiters()
        self._begun = self._closed = False
        self.is_open: bool = False

    def open(self, listener: Listener, timeout_seconds: float) -> None:
        self._listener = listener
        if not self._begun:
            self._begun = True
            self._open_soon(0.0)
            self._tried.wait(timeout_seconds)

    def _open_soon(self, seconds: float) -> None:
        here().after(seconds, self._dial)

    def _dial(self) -> None:
        if not (self._closed or self._connector.process.is_dead):
            self._connector.link.trip(self._arrive, up=True)

    def _arrive(self) -> None:
        server, process = self._connector.server, self._connector.process
        if self._closed or process.is_dead or self.is_open:
            return
        server.when_awake(self._subscribe)

    def _subscribe(self) -> None:
        server = self._connector.server
        if server.is_down:
            self._connector.process.call(self._failed)
            return
        server.inboxes.setdefault(self.channel, []).append(self)
        self.is_open = True
        self._connector.process.call(self._subscribed)

    def _subscribed(self) -> None:
        assert self._listener is not None
        self._tried.wake_all()
        if self.is_open:
            self._listener.reconnected()

    def _failed(self) -> None:
        self._tried.wake_all()
        self._open_soon(here().rng.uniform(0.01, 0.5))

    def cut(self) -> None:
        """End the connection. What is on its way is lost."""
        if self.is_open:
            self.is_open = False
            server = self._connector.server
            if self.is_left_behind:
                server.left_behind.remove(self)
            else:
                server.inboxes[self.channel].remove(self)
            if not self._closed:
                self._open_soon(here().rng.uniform(0.001, 0.05))

    def send(self, message: bytes) -> None:
        """Let a message arrive, unless the connection is cut meanwhile."""
        link, cuts, starts = (
            self._connector.link,
            self._connector.link.cuts,
            self._connector.server.starts,
        )

        def arrive() -> None:
            here_still = starts == self._connector.server.starts or self.is_left_behind
            if self.is_open and link.cuts == cuts and here_still:
                self._connector.process.call(self._deliver, message)

        link.trip(arrive, up=False)

    def _deliver(self, message: bytes) -> None:
        _Stream._deliver(self, message)  # type: ignore[arg-type]

    def wait(self, bell: Any, timeout_seconds: float) -> None:
        bell.wait(timeout_seconds)

    @property
    def is_left_behind(self) -> bool:
        return self in self._connector.server.left_behind

    def doubt(self) -> None:
        """Leave soon a server to which calls do not go any more."""
        if self.is_left_behind:
            here().after(here().rng.uniform(0, MOST_DOUBT_SECONDS), self._leave)

    def _leave(self) -> None:
        if self.is_left_behind:
            self.cut()

    def hang_up(self) -> None:
        self.cut()

    def close(self, _timeout_seconds: float) -> None:
        self._closed = True
        self.cut()


def split(packed: bytes) -> list[list[str]]:
    """Return the commands that a client has packed."""
    commands, words = [], packed.split(b"\r\n")
    place = 0
    while place < len(words) - 1:
        count = int(words[place][1:])
        commands.append(
            [words[place + 2 * number].decode("latin-1") for number in range(1, count + 1)]
        )
        place += 1 + 2 * count
    return commands
