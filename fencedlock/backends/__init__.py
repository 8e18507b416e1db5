"""Lock servers: one room each, all of the shape that :mod:`fencedlock.core.backend` fixes."""
