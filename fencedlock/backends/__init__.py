"""Lock servers: one package each, which implements the protocols of :mod:`fencedlock.core.backend`."""
