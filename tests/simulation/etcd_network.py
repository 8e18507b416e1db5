"""A simulated etcd cluster, and the gRPC by which the library's own connections reach it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc

from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.connections import Method
from fencedlock.backends.etcd.messages import messages
from tests.simulation.etcd_store import EtcdStore, RefusedError
from tests.simulation.network import Link
from tests.simulation.primitives import Waiters, here
from tests.simulation.world import Process, World

MEMBERS = 3
ELECTION_SECONDS = (1.0, 2.0)
"""How long it takes until the members notice that they have no leader, and have elected another."""

REVOKE_SECONDS = 0.5
"""The interval at which the leader ends the leases whose time has run out."""

REQUEST_SECONDS = 7.0
"""How long a member waits for a majority before it refuses a request."""

_METHODS: dict[str, Method] = {
    method.path: method
    for method in vars(calls).values()
    if isinstance(method, Method) and method is not calls.WATCH
}
_ANSWERS: dict[Method, Callable[[EtcdStore, Any], Any]] = {
    calls.RANGE: EtcdStore.range,
    calls.TXN: EtcdStore.txn,
    calls.LEASE_GRANT: EtcdStore.grant,
    calls.LEASE_REVOKE: EtcdStore.revoke,
    calls.LEASE_KEEP_ALIVE: EtcdStore.keep_alive,
    calls.LEASE_TIME_TO_LIVE: EtcdStore.time_to_live,
}
_OF_THE_LEADER = (calls.LEASE_KEEP_ALIVE, calls.LEASE_TIME_TO_LIVE)
"""What a leader answers without asking the others, even if they have replaced it meanwhile."""


class Member:
    """One member of the cluster."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.is_down: bool = False
        self.is_frozen: bool = False
        self.starts: int = 0
        self.old_leases: dict[int, tuple[int, float, list[bytes]]] | None = None
        """The leases as this member knew them when it was frozen as a leader. It answers by them
        until it learns that there is another leader.
        """
        self.streams: list[Stream] = []
        self._postponed: list[Callable[[], object]] = []

    @property
    def is_healthy(self) -> bool:
        return not (self.is_down or self.is_frozen)

    def when_awake(self, action: Callable[[], object]) -> None:
        """Do something as soon as the member is not frozen."""
        if self.is_frozen:
            self._postponed.append(action)
        else:
            action()

    def freeze(self) -> None:
        self.is_frozen = True
        if self.cluster.leader is self:
            self.old_leases = {
                lease_id: (lease.seconds, lease.ends_at, sorted(lease.keys))
                for lease_id, lease in self.cluster.store.leases.items()
            }
        self.cluster.look_for_leader()

    def thaw(self) -> None:
        self.is_frozen = False
        postponed, self._postponed = self._postponed, []
        for action in postponed:
            action()
        self.old_leases = None  # the first word of the others tells it
        self.cluster.go_on()

    def kill(self) -> None:
        self.is_down = True
        self.thaw()
        for stream in list(self.streams):
            stream.cut()
        self.cluster.look_for_leader()

    def start(self) -> None:
        self.is_down = False
        self.starts += 1
        self.cluster.go_on()


class Cluster:
    """The members of a cluster, what they agree about, and who leads them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = EtcdStore(lambda: world.now, self._changed, world.rng.getrandbits(40))
        self.members = [Member(self, number) for number in range(MEMBERS)]
        self.leader: Member | None = self.members[0]
        self._waiting: list[tuple[Member, int, Callable[[str], object], float]] = []
        """The requests that wait for a leader."""
        self._electing = False
        world.after(world.rng.uniform(0, REVOKE_SECONDS), self._revoke)

    # --- requests

    def ask(
        self, member: Member, method: Method, body: bytes, answered: Callable[..., object]
    ) -> None:
        """Let a member answer a request, at once or when there is a leader again.

        ``answered`` is called with a code, and the answer or details.
        """
        if member.old_leases is not None and method in _OF_THE_LEADER:
            answered(None, self._as_before(member, method, body))
        elif self._works_for(member):
            self._execute(method, body, answered)
        else:
            starts, until = member.starts, self.world.now + REQUEST_SECONDS

            def go_on(why_not: str) -> None:
                if why_not:
                    answered(grpc.StatusCode.UNAVAILABLE, why_not)
                else:
                    self._execute(method, body, answered)

            self._waiting.append((member, starts, go_on, until))

    def _works_for(self, member: Member) -> bool:
        return self._has_majority() and self.leader is not None and member.is_healthy

    def _has_majority(self) -> bool:
        return 2 * sum(member.is_healthy for member in self.members) > len(self.members)

    def _execute(self, method: Method, body: bytes, answered: Callable[..., object]) -> None:
        request = method.request.FromString(body)
        if method is calls.LEASE_KEEP_ALIVE and request.ID in self.store.over():
            self.store.end_lease(request.ID)  # the answer waits for that
        try:
            answer = _ANSWERS[method](self.store, request)
        except RefusedError as error:
            code = (
                grpc.StatusCode.NOT_FOUND
                if "not found" in str(error)
                else grpc.StatusCode.FAILED_PRECONDITION
            )
            answered(code, str(error))
        else:
            answered(None, answer.SerializeToString())

    def _as_before(self, member: Member, method: Method, body: bytes) -> bytes:
        """Return the answer of a leader that does not know yet that it was replaced."""
        assert member.old_leases is not None
        request = method.request.FromString(body)
        seconds, ends_at, keys = member.old_leases.get(request.ID, (0, 0.0, []))
        if method is calls.LEASE_KEEP_ALIVE:
            answer = messages().LeaseKeepAliveResponse(ID=request.ID, TTL=seconds)
        else:
            left = int(ends_at - self.world.now) if seconds else -1
            answer = messages().LeaseTimeToLiveResponse(
                ID=request.ID, TTL=left, grantedTTL=seconds, keys=keys
            )
        return bytes(answer.SerializeToString())

    # --- leaders and leases

    def look_for_leader(self) -> None:
        """Elect another leader in a while, if there is none that works."""
        if self._electing or (self.leader is not None and self.leader.is_healthy):
            return
        self._electing = True
        self.world.after(self.world.rng.uniform(*ELECTION_SECONDS), self._elect)

    def _elect(self) -> None:
        self._electing = False
        if self.leader is not None and self.leader.is_healthy:
            return
        if not self._has_majority():
            self.leader = None
            self.look_for_leader()
            return
        self.leader = self.world.rng.choice([each for each in self.members if each.is_healthy])
        self.store.extend_all()
        self.go_on()

    def change_leader(self) -> None:
        """Let another healthy member lead."""
        others = [each for each in self.members if each.is_healthy and each is not self.leader]
        if others and self._has_majority():
            self.leader = self.world.rng.choice(others)
            self.store.extend_all()

    def go_on(self) -> None:
        """Do what has waited, as far as that is possible now."""
        waiting, self._waiting = self._waiting, []
        for member, starts, action, until in waiting:
            if member.is_down or member.starts != starts or self.world.now > until:
                action("etcdserver: request timed out")
            elif self._works_for(member):
                action("")
            else:
                self._waiting.append((member, starts, action, until))
        self.look_for_leader()

    def _revoke(self) -> None:
        leader = self.leader
        if leader is not None and leader.is_healthy and self._has_majority():
            for lease_id in self.store.over():
                self.store.end_lease(lease_id)
        if any(self.world.now > until for *_, until in self._waiting):
            self.go_on()
        self.world.after(REVOKE_SECONDS, self._revoke)

    # --- watches

    def _changed(self, events: list[Any]) -> None:
        for member in self.members:
            for stream in list(member.streams):
                stream.tell(events)

    # --- what the run does to any kind of server

    def cut(self, link: Link) -> None:
        """Cut the streams of a network. Its other connections know by its number of cuts."""
        for member in self.members:
            for stream in list(member.streams):
                if stream.channel.link is link:
                    stream.cut()

    def forget(self, process: Process) -> None:
        """Drop the streams of a process that was killed."""
        for member in self.members:
            member.streams = [
                each for each in member.streams if each.channel.process is not process
            ]

    def replicate(self) -> None:
        """Do nothing: what is answered, the majority has."""


class CallError(grpc.RpcError):
    """A call that failed."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class Channel:
    """The same for its users as a channel of gRPC."""

    def __init__(self, process: Process, link: Link, member: Member) -> None:
        self.process = process
        self.link = link
        self.member = member
        self.is_closed: bool = False
        self._open: list[Callable[[], object]] = []

    def unary_unary(self, path: str) -> Callable[..., bytes]:
        return partial(self._call, _METHODS[path])

    def stream_stream(self, _path: str) -> Callable[..., Stream]:
        return lambda requests, metadata: Stream(self, requests)

    def close(self) -> None:
        self.is_closed = True
        for end in self._open:
            end()

    def _call(self, method: Method, body: bytes, timeout: float, metadata: Any) -> bytes:  # noqa: ARG002
        if self.is_closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        world, link, member = here(), self.link, self.member
        waiters = Waiters()
        result: list[Any] = []
        place, is_lost = (member.starts, link.cuts), world.rng.random() < link.lost_share

        def tell(code: Any, text: Any) -> None:
            if not result:
                result.append((code, text))
                waiters.wake_all()

        def arrive() -> None:
            member.when_awake(execute)

        def execute() -> None:
            if member.is_down or member.starts != place[0]:
                answered(grpc.StatusCode.UNAVAILABLE, "connection refused")
            else:
                member.cluster.ask(member, method, body, answered)

        def answered(code: Any, text: Any) -> None:
            if code is None and (is_lost or link.cuts != place[1] or member.starts != place[0]):
                code, text = grpc.StatusCode.UNAVAILABLE, "socket closed"
            link.trip(partial(tell, code, text), up=False)

        hang_up = partial(tell, grpc.StatusCode.CANCELLED, "Channel closed!")
        self._open.append(hang_up)
        link.trip(arrive, up=True)
        try:
            if not result:
                waiters.wait(timeout)
        finally:
            self._open.remove(hang_up)
        code, text = result[0] if result else (grpc.StatusCode.DEADLINE_EXCEEDED, "")
        if code is not None:
            raise CallError(code, text)
        return text  # type: ignore[return-value]


@dataclass
class _Packet:
    action: Callable[[], object]
    has_arrived: bool = False


class Stream:
    """The same for its users as a stream of gRPC: a stream of watches."""

    def __init__(self, channel: Channel, requests: Iterator[bytes]) -> None:
        if channel.is_closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        self.channel = channel
        self._requests = requests
        self._watches: dict[int, Any] = {}
        self._responses: deque[bytes] = deque()
        self._error: CallError | None = None
        self._waiters = Waiters()
        self._member = channel.member
        self._starts = self._member.starts
        self._ways: dict[bool, deque[_Packet]] = {True: deque(), False: deque()}
        """What is under way, in each direction. What has arrived waits for what was sent before."""
        channel._open.append(self.cancel)
        self._trip(self._opened, up=True)
        channel.process.start(self._send_all, "grpc-stream")

    # --- the client's side

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._responses:
            if self._error is not None:
                raise self._error
            self._waiters.wait()
        return self._responses.popleft()

    def cancel(self) -> None:
        self._end(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")

    def _send_all(self) -> None:
        for request in self._requests:
            self._trip(partial(self._take, request), up=True)

    def _end(self, code: grpc.StatusCode, details: str) -> None:
        if self._error is None:
            self._error = CallError(code, details)
            self._waiters.wake_all()
            if self in self._member.streams:
                self._member.streams.remove(self)
            if self.cancel in self.channel._open:
                self.channel._open.remove(self.cancel)

    def cut(self) -> None:
        """End the connection. What is on its way is lost."""
        self.channel.process.call(self._end, grpc.StatusCode.UNAVAILABLE, "socket closed")

    # --- the way: what is sent first arrives first

    def _trip(self, action: Callable[[], object], *, up: bool) -> None:
        link, cuts, way = self.channel.link, self.channel.link.cuts, self._ways[up]
        packet = _Packet(action)
        way.append(packet)

        def arrive() -> None:
            packet.has_arrived = True
            while way and way[0].has_arrived and self._error is None and link.cuts == cuts:
                way.popleft().action()

        link.trip(arrive, up=up)

    # --- the member's side

    def _opened(self) -> None:
        if self._member.is_down or self._member.starts != self._starts:
            self.cut()
        else:
            self._member.streams.append(self)

    def _take(self, body: bytes) -> None:
        self._member.when_awake(partial(self._watch, messages().WatchRequest.FromString(body)))

    def _watch(self, request: Any) -> None:
        if self not in self._member.streams:
            return
        if request.HasField("cancel_request"):
            watch_id = request.cancel_request.watch_id
            self._watches.pop(watch_id, None)
            self._answer(watch_id, canceled=True)
        else:
            create = request.create_request
            assert create.watch_id not in self._watches, "each watch has an id of its own"
            self._watches[create.watch_id] = create
            self._answer(create.watch_id, created=True)

    def tell(self, events: list[Any]) -> None:
        """Send the events that are watched."""
        for watch_id, create in self._watches.items():
            found = [event for event in events if create.key <= event.kv.key < create.range_end]
            if found:
                self._answer(watch_id, events=found)

    def _answer(self, watch_id: int, **fields: Any) -> None:
        response = messages().WatchResponse(watch_id=watch_id, **fields)
        response.header.revision = self._member.cluster.store.revision
        body = response.SerializeToString()
        self._member.when_awake(lambda: self._trip(partial(self._arrived, body), up=False))

    def _arrived(self, body: bytes) -> None:
        self.channel.process.call(self._deliver, body)

    def _deliver(self, body: bytes) -> None:
        self._responses.append(body)
        self._waiters.wake_all()


def grpc_of(process: Process, link: Link, cluster: Cluster) -> Any:
    """Return what the library uses of gRPC, for one process."""

    def insecure_channel(endpoint: str, _options: Any) -> Channel:
        return Channel(process, link, cluster.members[int(endpoint.rpartition(":")[2])])

    return SimpleNamespace(
        RpcError=grpc.RpcError, StatusCode=grpc.StatusCode, insecure_channel=insecure_channel
    )
