"""Functions that tell exceptions of signal handlers from exceptions of our own I/O.

Time limits of job queues (Celery's, RQ's, ``signal.alarm``) raise an ordinary ``Exception``,
sometimes a ``TimeoutError``, from a signal handler. They may do so in the middle of anything that
the main thread does, including a socket call. Only an exception that the socket call itself raised
is an I/O error. An exception that a handler raised belongs to the program, and has to leave the
library unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType, TracebackType


def raised_by_handler(error: BaseException) -> BaseException | None:
    """Return the exception of a signal handler behind this error, or None if there is none.

    It is this error itself, or one that a library in between has turned into this error.
    """
    if _passed_a_handler(error.__traceback__):
        return error
    # An exception that was already being handled when our call began is a context of the error too.
    # It was caught in a frame that is further out than all frames that the error has passed.
    frames = list(_frames(error.__traceback__))
    seen = {id(error)}
    found = error.__cause__ or error.__context__
    while found is not None and id(found) not in seen and found.__traceback__ is not None:
        seen.add(id(found))
        if found.__traceback__.tb_frame not in frames:
            return None
        if _passed_a_handler(found.__traceback__):
            return found
        found = found.__cause__ or found.__context__
    return None


def innermost_module(error: BaseException) -> str:
    """Return the name of the module that raised the exception, or "" if it is not known."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", ""))


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _passed_a_handler(trace: TracebackType | None) -> bool:
    """Return True if one of the frames is that of a signal handler.

    Python calls a handler with the frame that it interrupted, so that frame is among the local
    variables of the handler. It is the last frame of Python code before the handler. Frames of
    compiled code may stand between the two, so all earlier frames are compared.
    """
    before: list[FrameType] = []
    for frame in _frames(trace):
        if any(_was_given(frame, other) for other in before):
            return True
        before.append(frame)
    return False


def _was_given(frame: FrameType, other: FrameType) -> bool:
    return any(
        value is other or (isinstance(value, tuple) and any(item is other for item in value))
        for value in frame.f_locals.values()
    )
