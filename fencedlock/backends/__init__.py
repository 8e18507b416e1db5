"""Lock servers: one room each, all of the shape that :mod:`fencedlock.backends.base` fixes."""
