"""When a client asks for a free lock: pure, by the events alone."""

from __future__ import annotations

from fencedlock.backends.etcd.queue import GRACE_SECONDS, LockQueue


def queue(*claim_ids: str, held: bool = True, ours: str = "") -> LockQueue:
    made = LockQueue()
    made.read(10, held=held, claim_ids=claim_ids, now=0.0)
    for claim_id in ours:
        made.wait(claim_id)
    return made


def test_the_head_is_called_when_the_lock_is_free() -> None:
    line = queue("a", "b", ours="ab")
    assert line.next(1.0) == (None, None)
    line.freed(1.0)
    assert line.next(1.0)[0] == "a"
    assert not line.may_pass_over("a")


def test_it_is_called_again_when_nothing_came_of_it() -> None:
    line = queue("a", held=False, ours="a")
    assert line.next(1.0) == ("a", 1.0 + GRACE_SECONDS)
    assert line.next(1.1) == (None, 1.0 + GRACE_SECONDS)
    assert line.next(1.0 + GRACE_SECONDS)[0] == "a"
    line.left("a")
    line.joined("a")
    assert line.next(1.1 + GRACE_SECONDS)[0] == "a"


def test_a_head_of_another_client_has_its_time_and_is_suspected_then() -> None:
    line = queue("x", "y", "a", ours="a")
    line.freed(5.0)
    assert line.next(5.0) == (None, 5.0 + 2 * GRACE_SECONDS)
    assert not line.may_pass_over("a")
    assert line.next(5.0 + 2 * GRACE_SECONDS)[0] == "a"
    assert line.may_pass_over("a")
    line.held_by("a")
    line.left("a")
    line.give_up("a")
    line.joined("a2")
    line.wait("a2")
    line.freed(9.0)
    assert line.next(9.0)[0] == "a2", "who has let one turn pass is not waited for again"


def test_who_was_passed_over_by_others_is_suspected_too() -> None:
    line = queue("dead", "x", "a", ours="a")
    line.freed(1.0)
    line.held_by("x")
    line.left("x")
    line.freed(2.0)
    assert line.next(2.0)[0] == "a"


def test_nothing_is_said_while_nothing_is_known() -> None:
    line = queue("a", held=False, ours="a")
    line.forget()
    assert line.next(1.0) == (None, None)
    assert not line.may_pass_over("a")
    line.read(20, held=False, claim_ids=["x", "a"], now=3.0)
    assert line.next(3.0) == (None, 3.0 + GRACE_SECONDS)
    assert line.next(3.0 + GRACE_SECONDS)[0] == "a"
