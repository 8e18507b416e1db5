"""Finds out that a thread is about to wait for itself."""

from __future__ import annotations

from fencedlock.clock import now_seconds
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.roles import Owner
from fencedlock.errors import FencedLockError, WouldDeadlockError
from fencedlock.runtime.client_state import ClientState, all_states
from fencedlock.runtime.owners import this_thread
from fencedlock.runtime.resources import Resource

SUSPICION_SECONDS = 0.1
"""The length of a wait after which it is looked whether this thread waits for itself.

That may take a request, and most waits are shorter.
"""


def raise_if_deadlocked(resource: Resource, owner: Owner) -> None:
    """Raise WouldDeadlockError if another owner of this thread holds the lock. No I/O."""
    for hold in list(resource.holds.values()):
        if _is_in_thread(hold, owner):
            raise _deadlock(hold, f"{hold.owner.name()} of this thread")


def raise_if_held_by_thread_of_loop(resource: Resource) -> None:
    """Raise WouldDeadlockError if the thread has acquired the lock before it began to run the loop.

    It can't release the lock while the loop runs. Other tasks can, so a task may wait for them.
    """
    thread = this_thread.owner
    for hold in list(resource.holds.values()):
        if hold.owner is thread and _is_in_thread(hold, thread):
            raise WouldDeadlockError(
                f"lock {resource.name!r} is held by {thread.name()}, which runs this event loop "
                "and can't release it while a task waits",
                lock=resource.name,
                owner=hold.claim_id,
            )


def raise_if_held_by_another_client(state: ClientState, claim: Claim) -> None:
    """Raise WouldDeadlockError if this thread holds the lock that it waits for by another client.

    The server is asked only if another client of this process holds a lock of this name in this
    thread, because that may be the lock of another server.
    """
    for other in list(all_states):
        resource: Resource | None = other.resources.get(claim.bound.name)
        if other is state or resource is None:
            continue
        for hold in list(resource.holds.values()):
            if _is_in_thread(hold, claim.owner):
                try:
                    info = claim.bound.inspect(state.request_seconds(claim.lease_seconds))
                except FencedLockError:
                    return  # the wait goes on, and reports what is wrong with the server
                if info.owner == hold.claim_id:
                    raise _deadlock(hold, f"{hold.owner.name()} by another client of its server")


def _is_in_thread(hold: Hold, owner: Owner) -> bool:
    return (
        owner.thread is not None
        and hold.owner.thread is owner.thread
        and hold.wants_beats()
        and now_seconds() < hold.deadline
    )


def _deadlock(hold: Hold, holder: str) -> WouldDeadlockError:
    return WouldDeadlockError(
        f"lock {hold.bound.name!r} is held by {holder}, which can't release it while this call "
        "waits. In an event loop, wait in another thread (asyncio.to_thread); otherwise use one "
        "client for each server",
        lock=hold.bound.name,
        owner=hold.claim_id,
    )
