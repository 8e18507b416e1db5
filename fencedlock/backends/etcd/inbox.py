"""The inbox of an etcd client: one watch stream that follows the queues it waits in."""

from __future__ import annotations

import logging
from queue import SimpleQueue
from typing import Any

from fencedlock.backends.etcd.connections import RANGE, WATCH, Connections
from fencedlock.backends.etcd.keys import LockKeys
from fencedlock.backends.etcd.messages import DELETE, OLDEST_FIRST, messages
from fencedlock.backends.etcd.queue import LockQueue
from fencedlock.backends.etcd.values import claim_of_holder, claims_in
from fencedlock.clock import now_seconds
from fencedlock.core.backend import Listener
from fencedlock.errors import BackendError, BackendUnavailableError
from fencedlock.runtime.interrupts import Event, make_mutex
from fencedlock.runtime.threads import Worker

logger: logging.Logger = logging.getLogger("fencedlock")

LINGER_SECONDS = 5.0
"""How long a queue is still watched after the last waiter has left, because another often comes."""

LONGEST_PAUSE_SECONDS = 1.0
"""The longest pause between two attempts to open the stream again."""


class _Watch:
    """The queue of one lock, and the id of the server's watcher that follows it."""

    __slots__ = ("id", "keys", "queue")

    def __init__(self, watch_id: int, keys: LockKeys) -> None:
        self.id: int = watch_id
        self.keys: LockKeys = keys
        self.queue: LockQueue = LockQueue()


class Inbox:
    """The stream, the thread that reads it, and the queues that it follows.

    For each lock, only the holder's key is watched, and the key that tells who left the queue. Each
    event wakes every process that waits, so there should be few events. If a process dies, its
    place ends with its lease without such an event. The other waiters then wait for its turn once
    and pass it over, as they do while a dead process still has its place.

    A watcher that begins at a past revision gets its first events up to 100 ms late. Each watcher
    therefore begins at the present revision. When the server has confirmed it, the queue is read.
    All that happens after this read arrives as events.
    """

    def __init__(self, connections: Connections, timeout_seconds: float) -> None:
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._mutex = make_mutex()
        self._watches: dict[bytes, _Watch] = {}
        self._by_id: dict[int, _Watch] = {}
        self._last_id = 0
        self._due: dict[bytes, float] = {}
        self._requests: SimpleQueue[Any] | None = None
        """The requests that the open stream sends; None while no stream is open."""
        self._responses: Any = None
        self._listener: Listener | None = None
        self._worker = Worker(self._run, "fencedlock-inbox")
        self._closed = Event()
        self._warned = False

    def open(self, listener: Listener) -> None:
        """Start the thread that reads the stream, unless it runs already."""
        if self._listener is None and not self._closed.is_set():
            self._listener = listener
        try:
            self._worker.start()
        except RuntimeError:
            pass  # the interpreter is ending; waiters ask by themselves

    def wait(
        self, keys: LockKeys, claim_id: str, revision: int, ahead: list[str], *, are_all: bool
    ) -> None:
        """Follow this lock's queue for a claim that waits in it.

        The arguments after ``keys`` are those of :meth:`LockQueue.placed`.
        """
        with self._mutex:
            watch = self._watches.get(keys.queue)
            if watch is None:
                self._last_id += 1
                watch = self._watches[keys.queue] = self._by_id[self._last_id] = _Watch(
                    self._last_id, keys
                )
                self._send(self._create_request(watch))
            watch.queue.wait(claim_id)
            if (
                not watch.queue.placed(claim_id, revision, ahead, are_all=are_all)
                and self._responses is not None
            ):
                self._responses.cancel()  # the next stream begins with a read of everything
            self._call_next(watch)

    def give_up(self, keys: LockKeys, claim_id: str) -> None:
        """Record that a claim does not wait any more."""
        with self._mutex:
            watch = self._watches.get(keys.queue)
            if watch is not None:
                watch.queue.give_up(claim_id)
                if watch.queue.is_awaited:
                    self._call_next(watch)
                else:
                    self._look_by(watch, now_seconds() + LINGER_SECONDS)

    def follows(self, keys: LockKeys) -> bool:
        """Return True while events of this lock arrive."""
        with self._mutex:
            watch = self._watches.get(keys.queue)
            return watch is not None and watch.queue.revision > 0

    def may_pass_over(self, keys: LockKeys, claim_id: str) -> bool:
        """Return True if this claim may pass over the ones before it in the queue.

        That is so if there are any, and each of them has let a turn pass.
        """
        with self._mutex:
            watch = self._watches.get(keys.queue)
            return watch is not None and watch.queue.may_pass_over(claim_id)

    def maintain(self, now: float) -> float | None:
        """Call the claims whose time to ask has come, and end the watches that nobody needs.

        Return the local time of the next call, or None.
        """
        with self._mutex:
            for key in [key for key, due in self._due.items() if due <= now]:
                del self._due[key]
                watch = self._watches[key]
                if watch.queue.is_awaited:
                    self._call_next(watch)
                else:
                    self._end(watch)
            return min(self._due.values(), default=None)

    def close(self, timeout_seconds: float) -> None:
        """Stop reading, and wait until the thread has ended or until the timeout."""
        self._closed.set()
        if self._responses is not None:
            self._responses.cancel()
        self._worker.wait(timeout_seconds)

    # --- called with the mutex held

    def _call_next(self, watch: _Watch) -> None:
        claim_id, due = watch.queue.next(now_seconds())
        if claim_id is not None and self._listener is not None:
            self._listener.look_again(claim_id)
        if due is not None:
            self._look_by(watch, due)

    def _look_by(self, watch: _Watch, due: float) -> None:
        self._due[watch.keys.queue] = due
        if self._listener is not None:
            self._listener.maintain_by(due)

    def _end(self, watch: _Watch) -> None:
        del self._watches[watch.keys.queue], self._by_id[watch.id]
        self._send(
            messages().WatchRequest(cancel_request=messages().WatchCancelRequest(watch_id=watch.id))
        )

    def _send(self, request: Any) -> None:
        if self._requests is not None:
            self._requests.put(request)

    @staticmethod
    def _create_request(watch: _Watch) -> Any:
        known = messages()
        create = known.WatchCreateRequest(
            key=watch.keys.holder, range_end=watch.keys.left_end, watch_id=watch.id
        )
        return known.WatchRequest(create_request=create)

    # --- the thread

    def _run(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            began_at = now_seconds()
            try:
                self._read_until_cut()
            except BackendUnavailableError as error:
                logger.debug("fencedlock: the inbox was cut: %s", error)
            except BackendError as error:
                if not self._warned:
                    self._warned = True
                    logger.warning(
                        "fencedlock: queues can't be followed, so hand-offs take seconds instead "
                        "of milliseconds: %s",
                        error,
                    )
            except Exception:
                logger.exception("fencedlock: unexpected error in the inbox, which goes on")
            pause = (
                0.01
                if now_seconds() - began_at > LONGEST_PAUSE_SECONDS
                else min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.01)
            )

    def _read_until_cut(self) -> None:
        requests: SimpleQueue[Any] = SimpleQueue()
        with self._mutex:
            for watch in self._watches.values():
                requests.put(self._create_request(watch))
            self._requests = requests
        try:
            with self._connections.stream(WATCH, iter(requests.get, None)) as responses:
                self._responses = responses
                if self._closed.is_set():
                    return
                for response in responses:
                    self._take(response)
        finally:
            with self._mutex:
                self._requests = None
                # No events arrive until the next stream. By what is known now, a lock may seem free
                # that has had several holders since, and its waiters seem dead.
                for watch in self._watches.values():
                    watch.queue.forget()
            requests.put(None)

    def _take(self, response: Any) -> None:
        if response.canceled and "permission" in response.cancel_reason:
            raise BackendError(f"etcd says: {response.cancel_reason}")
        watch = self._by_id.get(response.watch_id)
        if watch is None:
            return  # this watch was ended meanwhile
        if response.canceled:
            # The reason may be a compaction while the server could not keep up.
            raise BackendUnavailableError(
                f"etcd ended the watch of {watch.keys.queue!r}: "
                f"{response.cancel_reason or 'compacted'}"
            )
        if response.created:
            self._read_queue(watch)
        elif response.events:
            self._follow(watch, response)

    def _read_queue(self, watch: _Watch) -> None:
        request = messages().RangeRequest(
            key=watch.keys.holder, range_end=watch.keys.queue_end, **OLDEST_FIRST
        )
        answer = self._connections.call(RANGE, request, self._timeout_seconds)
        claim_ids = claims_in(answer.kvs, watch.keys)
        held = any(kv.key == watch.keys.holder for kv in answer.kvs)
        with self._mutex:
            watch.queue.read(
                answer.header.revision, held=held, claim_ids=claim_ids, now=now_seconds()
            )
            self._call_next(watch)

    def _follow(self, watch: _Watch, response: Any) -> None:
        queue, holder = watch.queue, watch.keys.holder
        with self._mutex:
            for event in response.events:
                kv, ended = event.kv, event.type == DELETE
                if kv.mod_revision <= queue.revision:
                    continue
                if kv.key == holder:
                    if ended:
                        queue.freed(now_seconds())
                    elif kv.version == 1:
                        queue.held_by(claim_of_holder(kv.value), kv.mod_revision)
                elif not ended:
                    queue.left(kv.value.decode(errors="replace"), kv.mod_revision)
            # The header's revision would be wrong here: it is the server's newest, and events up to
            # it may still be under way.
            queue.revision = max(queue.revision, response.events[-1].kv.mod_revision)
            self._call_next(watch)
