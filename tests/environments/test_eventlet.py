"""Greenlets of eventlet: services of OpenStack."""

from tests.environments.greenlet_tests import GreenletTests


class TestEventlet(GreenletTests):
    library = "eventlet"
