"""How the tokens of a lock follow from etcd's revisions, also after its floor was raised."""

from __future__ import annotations

from typing import Any

from fencedlock.errors import BackendError


class FloorHistory:
    """Converts the revisions of one lock's grants to tokens, and back.

    A token is the ``create_revision`` of its grant plus the addition that was in force then.

    The value of the floor's key begins with the present addition. It counts for grants after the
    key's own ``mod_revision``. The earlier additions follow, each as ``since:addition``, so that
    the token of an existing hold does not change. Revisions and additions only ever rise.
    """

    __slots__ = ("_steps", "since")

    def __init__(self, since: int, steps: list[tuple[int, int]]) -> None:
        self.since: int = since
        """The revision at which the floor was last raised; 0 if it never was."""
        self._steps = steps

    @classmethod
    def read(cls, kv: Any) -> FloorHistory:
        """Return the floors that the floor's key contains. ``kv`` is None if there is no such key.

        Raises BackendError if the key's value is not that of a floor.
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
                f"the value of {kv.key!r} is not a floor: {kv.value!r:.200}"
            ) from error
        return cls(kv.mod_revision, steps)

    def raised_by(self, addition: int) -> bytes:
        """Return the value of the floor's key that adds this much, and never less than before."""
        addition = max([addition, *(step[1] for step in self._steps)])
        earlier = [b"%d:%d" % step for step in self._steps]
        return b" ".join([b"%d" % addition, *earlier])

    def token_of(self, revision: int) -> int:
        """Return the token of the grant at this revision."""
        return revision + next((addition for since, addition in self._steps if since < revision), 0)

    def revision_of(self, token: int) -> int:
        """Return the revision of the grant with this token.

        If there is no such grant, return some revision at which there was no grant.
        """
        for since, addition in self._steps:
            if token - addition > since:
                return token - addition
        return token


_NONE = FloorHistory(0, [])
