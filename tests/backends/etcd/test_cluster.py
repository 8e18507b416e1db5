"""Three members on loopback: the leader is killed or frozen, and the majority is lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.etcd_servers import EtcdCluster

TTL_SECONDS = 3
CONTENDERS = 4


class Holds:
    """The holds that contenders recorded: the times between which each believed, and its token."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[tuple[float, float, int]]:
        holds = []
        for path in self._folder.glob("holds-*"):
            for line in path.read_text().splitlines():
                began, ended, token = line.split()
                holds.append((float(began), float(ended), int(token)))
        return sorted(holds)

    def go_on(self) -> None:
        """Wait until there are twenty more holds."""
        wanted = self._count() + 20
        eventually(lambda: self._count() >= wanted, 60)

    def _count(self) -> int:
        return sum(path.read_text().count("\n") for path in self._folder.glob("holds-*"))

    def check(self) -> None:
        """Assert that no two believed in the lock at the same time, and that tokens rose."""
        holds = self.all()
        for (_, ended, token), (began, _, next_token) in itertools.pairwise(holds):
            assert ended <= began, "two holders at a time"
            assert token < next_token


@pytest.mark.parametrize("harm", ["kill", "freeze"])
def test_contenders_survive_their_leader(
    harm: str,
    cluster: EtcdCluster,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    tmp_path: Path,
) -> None:
    client = connect(cluster.url, ttl=TTL_SECONDS, socket_timeout=1)
    holds = Holds(tmp_path)
    workers = [contender("process", client) for _ in range(CONTENDERS)]
    stop = tmp_path / "stop"
    for worker in workers:
        worker.ask("make", "x", "FairLock")
        worker.tell("contend", "x", tmp_path / f"holds-{worker.pid}", stop)
    for _ in range(2):
        holds.go_on()
        leader = cluster.leader()
        if harm == "kill":
            leader.kill()
        else:
            leader.freeze()
        holds.go_on()
        if harm == "kill":
            leader.start()
        else:
            leader.thaw()
        cluster.leader()
    stop.touch()
    for worker in workers:
        worker.answer(60)
    holds.check()


def test_without_a_majority_holders_learn_at_their_deadline_and_waiters_raise_in_time(
    cluster: EtcdCluster, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(cluster.url, ttl=TTL_SECONDS, socket_timeout=0.5, outage_timeout=1)
    lock = client.FairLock("x")
    lock.acquire()
    outcomes: list[BaseException | bool] = []

    def wait(timeout: float) -> None:
        try:
            outcomes.append(client.FairLock("x").acquire(timeout=timeout))
        except fencedlock.FencedLockError as error:
            outcomes.append(error)

    waiters = [threading.Thread(target=wait, args=(timeout,)) for timeout in (-1, 4)]
    for waiter in waiters:
        waiter.start()
    eventually(lambda: len(lock.info().waiters) == 2)
    leader = cluster.leader()
    others = [member for member in cluster.members if member is not leader]
    leader.freeze()
    others[0].kill()
    began, deadline = time.monotonic(), time.monotonic() + lock.remaining()
    assert lock.lost.wait(20)
    assert time.monotonic() < deadline + 1
    with pytest.raises(fencedlock.LockLostError):
        lock.release()
    for waiter in waiters:
        waiter.join(30)
        assert not waiter.is_alive()
    assert time.monotonic() - began < 20
    assert [type(outcome) for outcome in outcomes] == [fencedlock.BackendUnavailableError] * 2
    with pytest.raises(fencedlock.BackendUnavailableError):
        client.RLock("y").acquire(False)
    leader.thaw()
    others[0].start()
    cluster.leader()

    def works_again() -> bool:
        try:
            return client.RLock("x").acquire(timeout=1)
        except fencedlock.BackendUnavailableError:
            return False

    eventually(works_again, 60)
