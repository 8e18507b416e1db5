"""What goes wrong with any server: its process, the network between, and the processes of its
clients.

A nemesis is a generator. It names the processes that will suffer and yields; does its deed and
yields; and heals, whatever happens between. What only some servers can suffer stands with them, in
:mod:`tests.faults.targets`.
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
    """It lasts so many leases, from and to."""
    breaks_exclusion: bool = False
    """The documentation says that two may believe to hold a lock at the same time after this."""
    aftermath_leases: float = 0.0
    """It may break exclusion for so long after it was healed."""
    not_with: tuple[str, ...] = ()
    """Others that the documentation does not promise to survive together with this one."""


def kill_client(run: Run, rng: random.Random) -> Deed:
    """``SIGKILL`` of a process of contenders; another one takes its place."""
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.kill()
        slot.start()
        yield ()


def freeze_client(run: Run, rng: random.Random) -> Deed:
    """``SIGSTOP`` of a process of contenders, ``SIGCONT`` after less or more than its lease."""
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.freeze()
        try:
            yield ()
        finally:
            slot.thaw()


def fork_client(run: Run, rng: random.Random) -> Deed:
    """A process of contenders forks in the middle of whatever its threads do, and the child
    contends as well.
    """
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.order("fork")
        yield ()


def fork_client_in_c(run: Run, rng: random.Random) -> Deed:
    """The same by a fork that Python does not hear of, as uWSGI makes it."""
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield (slot.process,)
        slot.order("fork-in-c")
        yield ()


def interrupt_client(run: Run, rng: random.Random) -> Deed:
    """A signal handler raises again and again in the main thread of a process of contenders, in the
    middle of its calls.
    """
    slot = rng.choice(run.slots)
    with slot.mutex:
        yield ()
        slot.order(f"interrupt {rng.uniform(0.5, 2) * run.target.lease_seconds}")
        yield ()


def step_client_clock(run: Run, rng: random.Random) -> Deed:
    """The wall clock that the library and redis-py see in a process of contenders is set by up to
    an hour.
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
    """A server's process is frozen, and thawed."""
    yield EVERYBODY
    member.freeze()
    try:
        yield ()
    finally:
        member.thaw()


def down(member: Any, *, meanwhile: Callable[[], None] = lambda: None) -> Deed:
    """A server's process is killed, and started again."""
    yield EVERYBODY
    member.kill()
    meanwhile()
    try:
        yield ()
    finally:
        member.start()


def freeze_server(run: Run, rng: random.Random) -> Deed:
    """``SIGSTOP`` of a server (of a cluster: a member that does not lead), ``SIGCONT`` after less
    or more than a lease.
    """
    with run.server_mutex:
        yield from frozen(rng.choice(run.target.followers()))


def restart_server(run: Run, rng: random.Random) -> Deed:
    """``SIGKILL`` of a server (of a cluster: any member); it comes back with its data."""
    with run.server_mutex:
        yield from down(rng.choice(run.target.members))


def cut(run: Run, rng: random.Random) -> Deed:
    """All connections of a process are reset; what was under way is lost."""
    slot = rng.choice(run.slots)
    yield (slot.name,)
    for link in slot.links:
        link.cut()
    yield ()


def bent(slot: Slot, **settings: float) -> Deed:
    """The links of a process have these settings, and then none again."""
    yield (slot.name,)
    for link in slot.links:
        vars(link).update(settings)
    try:
        yield ()
    finally:
        for link in slot.links:
            vars(link).update(dict.fromkeys(settings, 0.0))


def delay(run: Run, rng: random.Random) -> Deed:
    """Each packet of a process is on its way for up to 0.7 leases: more than a request waits for
    its answer.
    """
    slot = rng.choice(run.slots)
    seconds = rng.choice([0.03, 0.1, 0.13, 0.7]) * run.target.lease_seconds
    yield from bent(slot, delay_seconds=seconds)


def silence(run: Run, rng: random.Random) -> Deed:
    """Nothing of what a process sends, or of what it is sent, arrives; all of it arrives late."""
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
    """Single replies to a process are lost, and their connections with them."""
    slot, share = rng.choice(run.slots), rng.choice([0.05, 0.2, 0.4])
    yield from bent(slot, lost_share=share)


def late_packets(run: Run, rng: random.Random) -> Deed:
    """Single packets of a process arrive up to two leases late, long after it has asked again
    through another connection.
    """
    slot, share = rng.choice(run.slots), rng.choice([0.05, 0.2, 0.4])
    for link in slot.links:
        link.late_seconds = rng.uniform(0.05, 2) * run.target.lease_seconds
    yield from bent(slot, late_share=share)


def partition(run: Run, rng: random.Random) -> Deed:
    """A process in a network namespace of its own, as on another host, is cut off by the network:
    in one direction, or in both.
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
"""Those that any target knows."""
