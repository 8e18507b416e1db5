"""Backends for lock servers, which implement the protocols of :mod:`fencedlock.core.backend`."""
