"""Tokens above etcd's revisions, of a lock whose tokens were raised."""

from __future__ import annotations

from typing import Any

from fencedlock.errors import BackendError


class Floors:
    """How the tokens of one lock follow from revisions: each is the ``create_revision`` of its grant, and what was added to it by then.

    The key of the floor has the present addition, which counts for grants after that key's own
    ``mod_revision``; and, so that the token of a hold stays what it was, the earlier ones, as
    ``since:addition``. Both only ever rise.
    """

    __slots__ = ("_steps", "since")

    def __init__(self, since: int, steps: list[tuple[int, int]]) -> None:
        self.since: int = since
        """The revision of the last rise; 0 if there was none."""
        self._steps = steps

    @classmethod
    def read(cls, kv: Any) -> Floors:
        """From the floor's key, or None where there is none.

        Raises BackendError for what is no floor.
        """
        if kv is None:
            return _NONE
        try:
            present, *earlier = kv.value.split()
            steps = [(kv.mod_revision, int(present))]
            for step in earlier:
                since, addition = step.split(b":")
                steps.append((int(since), int(addition)))
        except ValueError as error:
            raise BackendError(
                f"what stands at {kv.key!r} is no floor: {kv.value!r:.200}"
            ) from error
        return cls(kv.mod_revision, steps)

    def raised_by(self, addition: int) -> bytes:
        """The value of the floor's key that adds so much from now on, and never less than before."""
        addition = max([addition, *(step[1] for step in self._steps)])
        earlier = [b"%d:%d" % step for step in self._steps]
        return b" ".join([b"%d" % addition, *earlier])

    def token_of(self, revision: int) -> int:
        """The token of the grant at this revision."""
        return revision + next((addition for since, addition in self._steps if since < revision), 0)

    def revision_of(self, token: int) -> int:
        """The revision of the grant with this token; some revision of no grant, if there is none."""
        for since, addition in self._steps:
            if token - addition > since:
                return token - addition
        return token


_NONE = Floors(0, [])
