"""When a client asks for a free lock. The tests are pure: they use only events, and no server."""

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
    line.left("a", 11)
    line.placed("a", 12, [], are_all=True)
    assert line.next(1.1 + GRACE_SECONDS)[0] == "a"


def test_a_head_of_another_client_has_its_time_and_is_suspected_then() -> None:
    line = queue("x", "y", "a", ours="a")
    line.freed(5.0)
    assert line.next(5.0) == (None, 5.0 + 2 * GRACE_SECONDS)
    assert not line.may_pass_over("a")
    assert line.next(5.0 + 2 * GRACE_SECONDS)[0] == "a"
    assert line.may_pass_over("a")
    line.held_by("a", 11)
    line.give_up("a")
    line.placed("a2", 12, ["x", "y"], are_all=True)
    line.wait("a2")
    line.freed(9.0)
    assert line.next(9.0)[0] == "a2", "who has let one turn pass is not waited for again"


def test_who_was_passed_over_by_others_is_suspected_too() -> None:
    line = queue("dead", "x", "a", ours="a")
    line.freed(1.0)
    line.held_by("x", 11)
    line.freed(2.0)
    assert line.next(2.0)[0] == "a"


def test_an_answer_that_is_older_than_events_is_understood_with_them() -> None:
    line = queue("x", ours="a")
    line.held_by("x", 12)
    line.left("y", 14)
    line.placed("a", 11, ["x", "y"], are_all=True)
    line.freed(2.0)
    assert line.next(2.0)[0] == "a", "x and y have left since then"
    line.placed("a", 10, ["x", "y"], are_all=True)
    assert line.next(2.0 + GRACE_SECONDS)[0] == "a", "it is older than what was read"


def test_an_answer_that_is_newer_than_what_is_read_afterwards_counts() -> None:
    line = LockQueue()
    for revision, ahead in [(11, ["x"]), (15, ["x", "b", "y"]), (13, ["x", "b"])]:
        line.placed(f"a{revision}", revision, ahead, are_all=True)
    line.wait("a15")
    line.read(12, held=True, claim_ids=["x", "a11"], now=0.0)
    line.held_by("x", 16)
    line.held_by("b", 18)
    line.freed(1.0)
    assert line.next(1.0) == (None, 1.0 + GRACE_SECONDS), "y is before a15"
    line.held_by("y", 20)
    line.freed(2.0)
    assert line.next(2.0)[0] == "a15"


def test_all_is_read_anew_when_too_much_has_happened_since_an_answer() -> None:
    line = queue("x", ours="a")
    for number in range(100):
        line.left(f"y{number}", 20 + number)
    assert not line.placed("a", 30, ["x"], are_all=True)
    assert line.placed("a", 80, ["x"], are_all=True)


def test_nobody_is_passed_over_while_not_all_are_known() -> None:
    line = queue(ours="a")
    line.placed("a", 11, ["dead"], are_all=False)
    line.freed(1.0)
    assert line.next(1.0 + GRACE_SECONDS)[0] == "a"
    assert not line.may_pass_over("a")
    line.placed("a", 12, ["dead"], are_all=True)
    assert line.may_pass_over("a")


def test_our_own_waiters_keep_their_places_behind_more_than_we_are_told_of() -> None:
    line = queue("x", "a", ours="ab")
    line.placed("b", 12, ["x"], are_all=False)
    line.held_by("x", 13)
    line.freed(2.0)
    assert line.next(2.0)[0] == "a"
    line.held_by("a", 15)
    line.give_up("a")
    line.freed(3.0)
    assert line.next(3.0)[0] == "b"


def test_nothing_is_said_while_nothing_is_known() -> None:
    line = queue("a", held=False, ours="a")
    line.forget()
    assert line.next(1.0) == (None, None)
    assert not line.may_pass_over("a")
    line.read(20, held=False, claim_ids=["x", "a"], now=3.0)
    assert line.next(3.0) == (None, 3.0 + GRACE_SECONDS)
    assert line.next(3.0 + GRACE_SECONDS)[0] == "a"
