"""Nemeses for any kind of server. They break the server's process, the network, or the processes of
the clients.

The deed of a nemesis is a generator. It first yields the names of the processes that will suffer.
Then it does the damage and yields again. At last it heals the damage, whatever has happened in
between. Nemeses for certain kinds of servers are in :mod:`tests.faults.targets`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.faults.wire import DOWN, UP

if TYPE_CHECKING:
    from tests.faults.run import Run, Slot

EVERYBODY = ("*",)
Deed = Generator[Iterable[str], None, None]


@dataclass(frozen=True)
class Nemesis:
    """One way to break things."""

    name: str
    deed: Callable[[Run, random.Random], Deed]
    leases: tuple[float, float]
    """The shortest and the longest time that it lasts, in leases."""
    breaks_exclusion: bool = False
    """True if, as documented, two may believe to hold a lock at the same time after this."""
    aftermath_leases: float = 0.0
    """How long it may break exclusion after it was healed, in leases."""
    not_with: tuple[str, ...] = ()
    """Other nemeses that the documentation does not promise to survive together with this one."""


def kill_client(run: Run, rng: random.Random) -> Deed:
    """Send ``SIGKILL`` to a process of contenders. Another process takes its slot."""
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.kill()
        slot.start()
        yield ()


def freeze_client(run: Run, rng: random.Random) -> Deed:
    """Send ``SIGSTOP`` to a process of contenders, and ``SIGCONT`` after less or more than its
    lease.
    """
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.freeze()
        try:
            yield ()
        finally:
            slot.thaw()


def fork_client(run: Run, rng: random.Random) -> Deed:
    """Let a process of contenders fork, whatever its threads do at that moment. The child contends
    as well.
    """
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.order("fork")
        yield ()


def fork_client_in_c(run: Run, rng: random.Random) -> Deed:
    """Let a process of contenders fork in C code, without Python's knowledge, as uWSGI does."""
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.order("fork-in-c")
        yield ()


def interrupt_client(run: Run, rng: random.Random) -> Deed:
    """Let a signal handler raise exceptions again and again in the main thread of a process of
    contenders, in the middle of its calls.
    """
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield ()
        slot.order(f"interrupt {rng.uniform(0.5, 2) * run.target.lease_seconds}")
        yield ()


def step_client_clock(run: Run, rng: random.Random) -> Deed:
    """Step the wall clock that the library and redis-py see in a process of contenders by up to an
    hour, forward or back.
    """
    slot = rng.choice(run.slots)
    yield ()
    with slot.mutex:
        slot.order(f"clock {rng.uniform(-3600, 3600)}")
    try:
        yield ()
    finally:
        with slot.mutex:
            slot.order("clock 0")


def frozen(member: Any) -> Deed:
    """Freeze the process of a server, and thaw it later."""
    yield EVERYBODY
    member.freeze()
    try:
        yield ()
    finally:
        member.thaw()


def down(member: Any, *, meanwhile: Callable[[], None] = lambda: None) -> Deed:
    """Kill the process of a server, and start it again later."""
    yield EVERYBODY
    member.kill()
    meanwhile()
    try:
        yield ()
    finally:
        member.start()


def freeze_server(run: Run, rng: random.Random) -> Deed:
    """Send ``SIGSTOP`` to a server, and ``SIGCONT`` after less or more than a lease. In a cluster,
    the server is a member that does not lead.
    """
    with run.server_mutex:
        yield from frozen(rng.choice(run.target.followers()))


def restart_server(run: Run, rng: random.Random) -> Deed:
    """Send ``SIGKILL`` to a server, or to any member of a cluster. It comes back with its data."""
    with run.server_mutex:
        yield from down(rng.choice(run.target.members))


def cut(run: Run, rng: random.Random) -> Deed:
    """Reset all connections of a process. Packets that are under way are lost."""
    slot = rng.choice(run.slots)
    yield (slot.name,)
    for link in slot.links:
        link.cut()
    yield ()


def bent(slot: Slot, **settings: float) -> Deed:
    """Apply these settings to the links of a process, and set them to 0 later."""
    yield (slot.name,)
    for link in slot.links:
        vars(link).update(settings)
    try:
        yield ()
    finally:
        for link in slot.links:
            vars(link).update(dict.fromkeys(settings, 0.0))


def delay(run: Run, rng: random.Random) -> Deed:
    """Delay each packet of a process by up to 0.7 leases, which is longer than a request waits for
    its answer.
    """
    slot = rng.choice(run.slots)
    seconds = rng.choice([0.03, 0.1, 0.13, 0.7]) * run.target.lease_seconds
    yield from bent(slot, delay_seconds=seconds)


def silence(run: Run, rng: random.Random) -> Deed:
    """Hold back all packets from a process, to it, or both. All of them arrive late."""
    slot = rng.choice(run.slots)
    directions = rng.choice([(UP,), (DOWN,), (UP, DOWN)])
    yield (slot.name,)
    for link in slot.links:
        link.silence(*directions)
    try:
        yield ()
    finally:
        for link in slot.links:
            link.silence()


def lose_replies(run: Run, rng: random.Random) -> Deed:
    """Lose single replies to a process, and the rest of their connections with them."""
    slot, share = rng.choice(run.slots), rng.choice([0.05, 0.2, 0.4])
    yield from bent(slot, lost_share=share)


def late_packets(run: Run, rng: random.Random) -> Deed:
    """Delay single packets of a process by up to two leases. They arrive long after it has asked
    again through another connection.
    """
    slot, share = rng.choice(run.slots), rng.choice([0.05, 0.2, 0.4])
    for link in slot.links:
        link.late_seconds = rng.uniform(0.05, 2) * run.target.lease_seconds
    yield from bent(slot, late_share=share)


def partition(run: Run, rng: random.Random) -> Deed:
    """Cut off the network of a process, in one direction or in both. The process is in a network
    namespace of its own, as if it were on another host.
    """
    slot = next(slot for slot in run.slots if slot.host is not None)
    host = slot.host
    assert host is not None
    directions = rng.choice([(UP,), (DOWN,), (UP, DOWN)])
    yield (slot.name,)
    host.block(*directions)
    try:
        yield ()
    finally:
        host.block()


NEMESES: tuple[Nemesis, ...] = (
    Nemesis("kill-client", kill_client, (0, 0)),
    Nemesis("freeze-client", freeze_client, (0.2, 2.5)),
    Nemesis("fork-client", fork_client, (0, 0)),
    Nemesis("fork-client-in-c", fork_client_in_c, (0, 0)),
    Nemesis("interrupt-client", interrupt_client, (0, 0)),
    Nemesis("step-client-clock", step_client_clock, (0.5, 3)),
    Nemesis("freeze-server", freeze_server, (0.1, 1.5)),
    Nemesis("restart-server", restart_server, (0, 0.7)),
    Nemesis("cut", cut, (0, 0)),
    Nemesis("delay", delay, (0.5, 3)),
    Nemesis("silence", silence, (0.2, 2.5)),
    Nemesis("lose-replies", lose_replies, (0.3, 1.5)),
    Nemesis("late-packets", late_packets, (0.3, 1.5)),
    Nemesis("partition", partition, (0.2, 2.5)),
)
"""The nemeses that work on any target."""
