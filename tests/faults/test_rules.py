"""Tests of the rules. Each rule is compared with a slow definition of it, and has to find a
violation.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import rules
from tests.faults.history import FAIL, INVOKE, NOTE, OK, Fault, History
from tests.faults.rules import RULES, Bounds, Windows
from tests.faults.slow_rules import (
    BOUNDS,
    slow_deadlines,
    slow_overlaps,
    slow_read_modify_write,
    slow_rejections,
    slow_rising,
    slow_stalled_seconds,
    slow_unique,
)
from tests.faults.stories import Story

LETTERS = "abcdef"


def broken(history: History) -> set[str]:
    return {violation.rule for violation in rules.violations(history, BOUNDS)}


# --- a violation of each rule


def tells_unique_tokens(story: Story) -> None:
    story.hold("a/0", 1, 2, 3, token=7)
    story.hold("b/0", 2.5, 4, 5, token=7)


def tells_rising_tokens(story: Story) -> None:
    story.hold("a/0", 1, 2, 3, token=7)
    story.hold("b/0", 2.5, 4, 5, token=6)


def tells_reentry(story: Story) -> None:
    claim = story.acquire("a/0", 1, 2, token=7)
    story.operation(
        "a/0", "nest", 3, 4, {"depth": 2}, OK, {"depth": 2, "token": 8, "deadline": 1000}
    )
    story.release("a/0", 5, 6, claim)


def tells_counts(story: Story) -> None:
    claim = story.hold("a/0", 1, 2, 9, token=7)
    story.inspect(3, 4, owner=claim, token=7, count=2)


def tells_counts_of_a_hold_that_was_released(story: Story) -> None:
    claim = story.hold("a/0", 1, 2, 3, token=7)
    story.inspect(5, 6, owner=claim, token=7, count=1)


def tells_exclusion(story: Story) -> None:
    story.hold("a/0", 1, 2, 9, token=7)
    story.hold("b/0", 1, 3, 4, token=8)


def tells_passing(story: Story) -> None:
    claim = story.acquire("p0/0", 1, 2, 10)
    given = {"claim": claim, "token": 10, "deadline": 1000.0, "lease": 5.0}
    story.operation("p0/0", "detach", 3, 4, given, got={"digest": "d"})
    for number, at in enumerate((5, 7)):
        got = {"claim": f"c{number}", "token": 10, "deadline": 1000.0, "abandoned": False}
        story.operation(f"p{number}/0", "attach", at, at + 1, {"digest": "d"}, got=got)
        story.release(f"p{number}/0", at + 1.1, at + 1.2, f"c{number}")


def tells_passing_of_a_hold_that_nobody_could_attach(story: Story) -> None:
    claim = story.acquire("p0/0", 1, 2, 10)
    given = {"claim": claim, "token": 10, "deadline": 1000.0, "lease": 5.0}
    story.operation("p0/0", "detach", 3, 4, given, got={"digest": "d"})
    got = {"why": "NotOwnedError"}
    story.operation("p1/0", "attach", 5, 6, {"digest": "d"}, FAIL, got)


def tells_passing_of_a_hold_that_somebody_else_has_got(story: Story) -> None:
    claim = story.acquire("p0/0", 1, 2, 10)
    given = {"claim": claim, "token": 10, "deadline": 1000.0, "lease": 5.0}
    story.operation("p0/0", "detach", 3, 4, given, got={"digest": "d"})
    story.release("p2/0", 5.2, 5.3, story.acquire("p2/0", 5, 5.1, 11))
    got = {"claim": "c", "token": 10, "deadline": 1000.0, "abandoned": False}
    story.operation("p1/0", "attach", 5, 6, {"digest": "d"}, got=got)
    story.release("p1/0", 7, 7.1, "c")


def tells_deadlines(story: Story) -> None:
    claim = story.hold("a/0", 1, 2, 9, token=7, deadline=12)
    story.inspect(3, 4, owner=claim, token=7, remaining=7.9)


def tells_loss(story: Story) -> None:
    claim = story.acquire("a/0", 1, 2, token=7, deadline=5)
    story.tell(6, "a/0", NOTE, "held", asked_at=5.5, deadline=5.0)
    story.release("a/0", 7, 8, claim, deadline=5)


def tells_loss_that_nobody_was_told_of(story: Story) -> None:
    claim = story.acquire("a/0", 1, 2, token=7, deadline=5)
    story.release("a/0", 7, 8, claim, deadline=5, lost=True)
    story.inspect(20, 21)


def tells_write_order(story: Story) -> None:
    story.write("a/0", 1, 2, 8, "x", (0, ""))
    story.write("b/0", 1, 3, 7, "y", (1, "x"))


def tells_read_modify_write(story: Story) -> None:
    story.write("a/0", 1, 2, 7, "x", (0, ""))
    story.write("b/0", 1, 3, 8, "y", (0, ""))


def tells_rejections(story: Story) -> None:
    story.refused("a/0", 1, 2, token=7, stored=8)


def tells_fairness(story: Story) -> None:
    story.hold("a/0", 0, 1, 4, token=1)
    story.hold("b/0", 2, 9, 10, token=3)
    story.hold("c/0", 2, 5, 6, token=2)
    story.inspect(3, 3.5, token=1, queue=["b/0@2", "c/0@2"])


def tells_timeouts(story: Story) -> None:
    story.acquire("a/0", 1, 9, token=1, timeout=5)


def tells_progress(story: Story) -> None:
    story.hold("a/0", 1, 20, 21, token=1)


def tells_recovery(story: Story) -> None:
    story.tell(1, "run", NOTE, "unrecovered", text="left behind")


def tells_contenders(story: Story) -> None:
    story.operation("a/0", "acquire", 1, 2, {"timeout": 1}, "fail", {"refused": "OOM"})


@pytest.mark.parametrize(
    "tell", [value for name, value in globals().items() if name.startswith("tells_")]
)
def test_a_rule_finds_its_violation(tell: Callable[[Story], None]) -> None:
    story = Story()
    tell(story)
    (found,) = broken(story.history())
    assert tell.__name__.startswith(f"tells_{found.replace(' ', '_').replace('-', '_')}")


def test_each_rule_has_a_violation() -> None:
    told = [name.removeprefix("tells_") for name in globals() if name.startswith("tells_")]
    assert all(
        any(name.startswith(rule.replace(" ", "_").replace("-", "_")) for name in told)
        for rule in RULES
    )


# --- faults that excuse a violation


def test_a_fault_excuses_an_overlap_only_between_the_two_grants() -> None:
    for begun, healed, excused in [
        (0, 0.5, False),
        (2.5, 2.6, True),
        (0, 2.2, True),
        (3.5, 4, False),
    ]:
        story = Story()
        tells_exclusion(story)
        story.fault("wipe-server", begun, healed, "*", breaks_exclusion=True)
        assert ("exclusion" not in broken(story.history())) is excused


def test_a_wipe_excuses_a_hold_whose_owner_heard_late_of_its_grant() -> None:
    for begun, healed, excused in [(2.5, 3, True), (0.2, 0.5, False)]:
        story = Story()
        late = story.acquire("a/0", 1, 6, token=7, deadline=9)
        new = story.acquire("b/0", 4, 5, token=8, deadline=20)
        story.release("a/0", 8, 8.5, late, deadline=9)
        story.release("b/0", 9, 10, new, deadline=20)
        story.fault("wipe-server", begun, healed, "*", breaks_exclusion=True)
        assert ("exclusion" not in broken(story.history())) is excused


def test_on_lost_may_come_when_its_owner_holds_the_lock_again() -> None:
    story = Story()
    claim = story.acquire("a/0", 1, 2, token=7, deadline=5)
    story.release("a/0", 3, 4, claim, deadline=5, lost=True)
    again = story.acquire("a/0", 4.1, 4.2, token=8, deadline=15)
    story.tell(4.5, "a/0", NOTE, "lost", reason="it was taken")
    story.release("a/0", 8, 9, again, deadline=15)
    story.tell(20, "a/0", NOTE, "end")
    history = story.history()
    assert broken(history) == set()
    assert [hold.told_at for hold in history.holds] == [4.5, float("inf")]


def test_on_lost_may_come_before_acquire_has_returned() -> None:
    story = Story()
    story.tell(1, "a/0", INVOKE, "acquire", timeout=None, fair=True)
    story.tell(1.5, "a/0", NOTE, "lost", reason="its lease ended", claim="x")
    story.tell(2, "a/0", OK, "acquire", claim="x", token=7, deadline=1.4, abandoned=False)
    story.release("a/0", 3, 4, "x", deadline=1.4, lost=True)
    story.tell(20, "a/0", NOTE, "end")
    history = story.history()
    assert [hold.told_at for hold in history.holds] == [1.5]
    assert "loss" not in broken(history)


@pytest.mark.parametrize(
    ("killed", "wiped", "excused"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_a_token_may_fall_if_nobody_is_left_who_knows_the_higher_one(
    killed: bool, wiped: bool, excused: bool
) -> None:
    story = Story()
    story.hold("a/0", 1, 2, 3, token=7)
    if killed:
        story.tell(3.5, "run", NOTE, "killed", process="a")
    if wiped:
        story.fault("wipe-server", 3.6, 3.7, "*", breaks_exclusion=True)
    story.hold("b/0", 4, 5, 6, token=6)
    assert ("rising tokens" not in broken(story.history())) is excused


def test_a_waiter_that_a_fault_hit_may_be_overtaken() -> None:
    for target, excused in [("b", True), ("c", False), ("*", True)]:
        story = Story()
        tells_fairness(story)
        story.fault("cut", 3.7, 3.7, target)
        assert ("fairness" not in broken(story.history())) is excused


def test_a_waiter_that_let_a_long_turn_pass_may_be_overtaken() -> None:
    for grace, excused in [(0.9, True), (1.1, False)]:
        story = Story()
        tells_fairness(story)
        found = rules.violations(
            story.history(), Bounds(10.0, slack_seconds=1.0, grace_seconds=grace)
        )
        assert ("fairness" not in {violation.rule for violation in found}) is excused


def test_a_copy_comes_in_time_again_only_after_a_step_of_the_server_s_clock() -> None:
    for name, healed, excused in [
        ("step-server-clock", 4, True),
        ("step-server-clock", -60, False),
        ("late-packets", 4, False),
    ]:
        story = Story()
        tells_counts_of_a_hold_that_was_released(story)
        story.fault(name, -61, healed, "*")
        assert ("counts" not in broken(story.history())) is excused
    story = Story()
    tells_counts(story)  # of a hold that goes on
    story.fault("step-server-clock", 2, 3, "*")
    assert "counts" in broken(story.history())


def test_a_frozen_contender_may_be_late() -> None:
    for name, healed, excused in [
        ("freeze-client", 8, True),
        ("freeze-client", 2.1, False),
        ("delay", 8, False),
    ]:
        story = Story()
        tells_timeouts(story)
        story.fault(name, 2, healed, "a")
        assert ("timeouts" not in broken(story.history())) is excused


def test_a_killed_contender_holds_until_it_was_last_heard_of() -> None:
    story = Story()
    story.acquire("a.1/0", 1, 2, token=7)
    story.tell(3, "a.1/0", NOTE, "held", asked_at=2.5, deadline=12.0)
    story.hold("b/0", 4, 13, 14, token=8)
    assert not broken(story.history())


# --- the slow definitions of the rules


def random_history(rng: random.Random) -> History:
    """Return a history as a few contenders might write it down, right or wrong."""
    story = Story()
    names = iter(range(1000))
    claims: list[str] = []
    for number in range(3):
        who, at = f"{LETTERS[number]}/0", 0.0

        def later() -> float:
            nonlocal at
            at += rng.choice([0.5, 1, 2]) + rng.random() / 100
            return at

        for _ in range(rng.randint(0, 4)):
            token = rng.randint(1, 9)
            claim = story.acquire(who, later(), later(), token, deadline=at + rng.uniform(0, 6))
            claims.append(claim)
            for _ in range(rng.randint(0, 2)):
                version = rng.randint(0, 3)
                read = (
                    None if rng.random() < 0.3 else (version, rng.choice(["", "0", "1", "2", "3"]))
                )
                value = str(next(names))
                if rng.random() < 0.2:
                    story.refused(who, later(), later(), token, rng.randint(1, 9))
                else:
                    story.write(who, later(), later(), token, value, read)
            if rng.random() < 0.3:
                story.tell(later(), who, NOTE, "held", asked_at=at, deadline=at + rng.uniform(0, 6))
            story.release(
                who,
                later(),
                later(),
                claim,
                lost=rng.random() < 0.2,
                deadline=at + rng.uniform(-2, 3),
            )
    for _ in range(rng.randint(0, 2)):
        begun = rng.uniform(0, 15)
        story.fault(
            "wipe-server",
            begun,
            begun + rng.uniform(0, 3),
            "*",
            breaks_exclusion=rng.random() < 0.7,
        )
    begun = 0.0
    for _ in range(rng.randint(0, 5)):
        begun += rng.uniform(0, 5)
        story.inspect(
            begun, begun + 0.3, owner=rng.choice([*claims, None]), remaining=rng.uniform(0, 6)
        )
        begun += 0.3
    return story.history()


def count(rule: Callable[[History, Bounds], Any], history: History) -> int:
    return len(list(rule(history, BOUNDS)))


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_rules_find_what_their_slow_definitions_find(rng: random.Random) -> None:
    history = random_history(rng)
    assert count(rules.unique_tokens, history) == slow_unique(history)
    assert count(rules.rising_tokens, history) == slow_rising(history)
    assert {
        (one.claim, other.claim, excused) for one, other, excused in rules.overlaps(history)
    } == slow_overlaps(history)
    assert count(rules.deadlines, history) == slow_deadlines(history)
    assert count(rules.rejections, history) == slow_rejections(history)
    assert sum(ended - begun for begun, ended, _ in rules.stalls(history)) == pytest.approx(
        slow_stalled_seconds(history)
    )


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_chain_of_writes_is_accepted_if_and_only_if_some_order_explains_it(
    rng: random.Random,
) -> None:
    story = Story()
    versions = list(range(rng.randint(1, 5)))
    for version in versions:  # mostly as a correct store would do it, with an error now and then
        read = (version, str(version - 1) if version else "")
        slip = rng.random()
        if slip < 0.15:
            read = (rng.choice(versions), read[1])
        elif slip < 0.3:
            read = (read[0], rng.choice(["", "0", "1", "2"]))
        story.write(
            f"{LETTERS[version]}/0",
            version,
            version + 0.5,
            1,
            str(version),
            None if rng.random() < 0.3 else read,
        )
    history = story.history()
    assert bool(count(rules.read_modify_write, history)) is slow_read_modify_write(history)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=6),
    st.integers(0, 9),
    st.integers(0, 5),
)
def test_windows_meet(windows: list[tuple[int, int]], begun: int, length: int) -> None:
    faults = [
        Fault("x", at, frozenset("*"), breaks_exclusion=True, healed=at + lasts)
        for at, lasts in windows
    ]
    meet = any(at <= begun + length and at + lasts >= begun for at, lasts in windows)
    assert Windows(faults).meet(begun, begun + length) is meet


def test_a_hundred_thousand_events_are_judged_in_time() -> None:
    """The bound is generous because machines differ. A rule in O(n²) would take minutes."""
    story = Story()
    at = 0.0
    for number in range(10_000):
        who = f"p{number % 6}.1/0"
        story.hold(who, at, at + 0.1, at + 0.8, token=number)
        story.write(
            who,
            at + 0.2,
            at + 0.3,
            number,
            str(number),
            (number, str(number - 1) if number else ""),
        )
        story.inspect(at + 0.4, at + 0.45, owner=f"{who}@{at}", token=number, remaining=1000.0)
        story.inspect(at + 0.5, at + 0.55, owner=f"{who}@{at}", token=number, remaining=1000.0)
        at += 1.0
        if not number % 10:
            story.fault("cut", at, at, f"p{number % 3}")
    assert len(story.events) >= 100_000
    begun = time.process_time()
    assert rules.violations(story.history(), BOUNDS) == []
    assert time.process_time() - begun < 20
