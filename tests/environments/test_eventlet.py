"""Greenlets of eventlet, which services of OpenStack use."""

from tests.environments.greenlet_tests import GreenletTests


class TestEventlet(GreenletTests):
    library = "eventlet"
