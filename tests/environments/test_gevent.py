"""Greenlets of gevent, which some workers of gunicorn and Celery use."""

from tests.environments.greenlet_tests import GreenletTests


class TestGevent(GreenletTests):
    library = "gevent"
