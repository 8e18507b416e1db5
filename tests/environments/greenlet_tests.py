"""What locks promise to greenlets.

The files test_gevent.py and test_eventlet.py run these tests for their libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest

from tests.conftest import eventually
from tests.environments.conftest import Program
from tests.servers import LockServer, RedisServer


class GreenletTests:
    """The standard library is patched before the import, unless a test says otherwise."""

    library: ClassVar[str]

    @pytest.fixture
    def greenlets(self, program: Callable[..., Program]) -> Callable[[str, str, str], Program]:
        """A function that runs a scenario with a URL and the name of a lock."""
        if find_spec(self.library) is None:
            pytest.skip(f"{self.library} is not installed")
        return lambda scenario, url, name: program("greenlets", self.library, scenario, url, name)

    def finished(self, running: Program, server: RedisServer, name: str) -> None:
        running.expect("done")
        running.end()
        # The claim of an interrupted request is remembered until the request's time is over.
        eventually(lambda: server.leftovers(name) == set())

    def test_each_greenlet_is_an_owner(
        self, server: RedisServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        self.finished(greenlets("owners", server.url, name), server, name)

    def test_waiting_can_be_ended_from_outside(
        self, server: RedisServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        self.finished(greenlets("cancelled", server.url, name), server, name)

    def test_a_hand_over_wakes_its_greenlet(
        self, server: RedisServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        self.finished(greenlets("handed_over", server.url, name), server, name)

    @pytest.mark.parametrize("scenario", ["frozen", "lost"])
    def test_a_silent_server(
        self,
        scenario: str,
        own_server: Callable[..., Any],
        greenlets: Callable[..., Program],
        name: str,
    ) -> None:
        """In ``frozen``, time limits are kept, and other greenlets run meanwhile.

        In ``lost``, a holder learns that its lease has ended.
        """
        server = own_server()
        running = greenlets(scenario, server.url, name)
        running.expect("freeze")
        server.freeze()
        running.tell("frozen")
        running.expect("thaw")
        server.thaw()
        running.tell("thawed")
        self.finished(running, server, name)

    def test_patched_after_the_import_there_is_one_clear_error(
        self, server: RedisServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        self.finished(greenlets("late", server.url, name), server, name)

    def test_patched_after_the_first_use_there_is_the_same_error(
        self, server: RedisServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        self.finished(greenlets("late_and_used", server.url, name), server, name)

    def test_a_greenlet_that_holds_nothing_can_not_release(
        self, server: RedisServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        self.finished(greenlets("strangers", server.url, name), server, name)

    def test_on_etcd_it_works_or_there_is_one_clear_error(
        self, etcd_server: LockServer, greenlets: Callable[..., Program], name: str
    ) -> None:
        running = greenlets("works_or_says_why", etcd_server.url, name)
        running.expect("done")
        running.end()
