"""Tells what a signal handler raised from what our own I/O raised.

Time limits of job queues (Celery's, RQ's, ``signal.alarm``) raise an ordinary ``Exception``,
sometimes a ``TimeoutError``, from a signal handler, in the middle of whatever the main thread does,
a socket call included. Only what that call itself raised is an I/O error; what a handler raised
belongs to the program and has to leave the library unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType, TracebackType


def raised_by_handler(error: BaseException) -> BaseException | None:
    """The exception of a signal handler that this one is, or that a library in between has turned into this one; None if there is none."""
    if _passed_a_handler(error.__traceback__):
        return error
    # What was being handled before our call began is a context of the error too. It was caught
    # further out than the error has come.
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
    """The name of the module in which the exception was raised; empty if that is not known."""
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
    """True if one of the frames is a signal handler: a function that was called with the frame that it interrupted.

    That is the last one of Python code; compiled code may stand between.
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
