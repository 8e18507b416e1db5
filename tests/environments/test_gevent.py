"""Greenlets of gevent: gunicorn's and Celery's workers of that kind."""

from tests.environments.greenlet_tests import GreenletTests


class TestGevent(GreenletTests):
    library = "gevent"
