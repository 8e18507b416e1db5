"""The named locks of one client, and its life: forks, closing, and the end of the interpreter."""

from __future__ import annotations

import time

from fencedlock.clock import Deadline
from fencedlock.core.lease import LeaseEvent
from fencedlock.runtime.acquiring import give_up
from fencedlock.runtime.at_exit import CLOSE_SECONDS, end_with_multiprocessing_child
from fencedlock.runtime.client_state import ClientState, all_states
from fencedlock.runtime.heartbeat import Heartbeat
from fencedlock.runtime.process import become_own, in_child
from fencedlock.runtime.releasing import release_quickly
from fencedlock.runtime.resources import Resource

SESSION_SECONDS = 0.5
"""How long closing waits for an event loop to close its connections."""

LOOK_SECONDS = 0.002
"""How often closing looks whether releases that had begun are done."""


class LockTable(ClientState):
    """The locks of one client in one process."""

    heartbeat: Heartbeat
    closed: bool
    at_exit: bool

    def _begin(self) -> None:
        super()._begin()
        self.heartbeat = Heartbeat(self, self._starting, self._end_in_background)
        self._ended = False
        self._will_close = False
        """True once a child of multiprocessing has been asked to release everything at its end."""

    def resource(self, name: str) -> Resource:
        """Return what all handles of this name share.

        Raises ConfigurationError for what can't be a name.
        """
        self.raise_if_closed()
        with self.mutex:
            resource: Resource | None = self.resources.get(name) if isinstance(name, str) else None
            if resource is None:
                made = Resource(self, name)
                # A destructor may have made one meanwhile.
                resource = self.resources.setdefault(name, made)
            return resource

    # --- forks

    def become_child(self) -> None:
        """In a forked child, hold nothing, and be a client of its own."""
        for hold in self.heartbeat.holds():
            hold.happened(LeaseEvent.FORKED, "the process was forked, and the parent holds it")
        waiting = list(self.claims.values())
        self.backend.forget_connections()
        self._begin_again()
        # If a signal handler has forked in the middle of a wait, the child's thread claims anew.
        for claim in waiting:
            claim.ring()

    def _begin_again(self) -> None:
        before = self.backend
        self._begin()
        self.backend.inherit(before)
        for resource in list(self.resources.values()):
            resource.holds = {}
            resource.bound = self.backend.bind_lock(resource.name)

    # --- the end

    def close(self) -> None:
        """Release all holds, end all waiting, and stop the threads. Closing twice does nothing.

        If there is anything to do, the heartbeat's thread does it, because no signal handler
        interrupts that thread.
        """
        become_own()
        self.closed = True
        deadline = Deadline(CLOSE_SECONDS)
        for session in list(self.sessions.values()):
            if session.is_here():  # this loop runs no more until everything is closed
                session.close_from_outside(0.0)
        if self.heartbeat.started or self.claims:
            try:
                self.heartbeat.close_client(deadline)
                self.heartbeat.start()
            except RuntimeError:  # no thread can be started
                self._end(deadline)
            self.heartbeat.wait(deadline)
        else:
            self._end(deadline)

    def begin_exit(self, deadline: Deadline) -> None:
        """Have the heartbeat's thread release everything, because the interpreter ends.

        The threads of all clients do so at the same time.
        """
        if not self.closed:
            self.at_exit = True
            self.heartbeat.close_client(deadline)

    def finish_exit(self, deadline: Deadline) -> None:
        """Wait until everything is released, or release it.

        Exit handlers that run later may lock, and find the client as it was at its beginning.
        """
        if not self.closed:
            self.at_exit = True
            self.heartbeat.wait(deadline)
            self._end(deadline)
            self._begin_again()

    def drop(self) -> None:
        """Close everything because the client was collected. Waits for nothing, takes no mutex."""
        if self.heartbeat.started:
            self.heartbeat.close_client(Deadline(CLOSE_SECONDS))
        else:  # so nothing is held
            self.closed = True
            for session in list(self.sessions.values()):
                session.close_soon()
            self.backend.close(0.0)

    def _end_in_background(self, deadline: Deadline) -> None:
        """Release everything in the heartbeat's thread.

        The client was dropped or closed, or the interpreter ends.
        """
        if not self.at_exit:
            self.closed = True
        self._end(deadline)

    def _end(self, deadline: Deadline) -> None:
        if self._ended:
            return
        reachable = True
        for claim in list(self.claims.values()):
            reachable = give_up(self, claim, reachable=reachable and deadline.left() > 0)
            claim.ring()
        for hold in self.heartbeat.holds():
            reachable = release_quickly(self, hold, deadline, reachable=reachable)
        # What is left is being released by its owner just now, who needs a connection.
        while self.heartbeat.holds() and deadline.left() > 0:
            time.sleep(LOOK_SECONDS)
        # What their tasks could not end is ended by the heartbeat, before it stops.
        for session in list(self.sessions.values()):
            session.close_from_outside(min(SESSION_SECONDS, deadline.left()))
        self.heartbeat.stop(deadline)
        self.backend.close(deadline.left())
        self.calls.close()
        self._ended = True

    def _starting(self) -> None:
        """Prepare for the exit when the heartbeat starts: there may be holds to release then."""
        if not self._will_close:
            self._will_close = True
            end_with_multiprocessing_child(self)


def _become_children() -> None:
    for state in list(all_states):
        if isinstance(state, LockTable) and not state.closed:
            state.become_child()


in_child("clients", _become_children)
