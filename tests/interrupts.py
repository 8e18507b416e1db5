"""Raises an exception at each place of a call at which Python may run a signal handler.

Python runs handlers in the main thread: at the beginning of a function, after a call of C code has
returned, and where a loop jumps back.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_PACKAGES = ("fencedlock", "redis", "grpc", "contextlib", "threading", "ssl", "socket", "queue")

_TRACES_ARE_INCOMPLETE = sys.version_info >= (3, 14)
"""True if ``sys.settrace`` leaves out instructions of a function in which a trace function has
raised an exception. ``sys.monitoring`` is then used instead.
"""

_TOOL = 4
"""A tool id for ``sys.monitoring`` that no known tool uses."""

_EVENTS = {
    "PY_START": ("call", True),
    "PY_RESUME": ("call", True),
    "INSTRUCTION": ("opcode", True),
    "PY_RETURN": ("return", True),
    "PY_YIELD": ("return", True),
    "PY_UNWIND": ("return", False),
}
"""Maps each event of ``sys.monitoring`` to the event of ``sys.settrace`` that it corresponds to,
and to True if it can be turned off at a single place in the code.
"""


class TimeLimit(Exception):  # noqa: N818 - job queues name theirs so
    """An exception like that of a job queue's time limit. It is not an OSError."""


class TimeLimitError(TimeoutError):
    """An exception like that of the ``signal.alarm`` recipe. It is an OSError."""


class Interrupt:
    """Raises an exception of this kind at the place with this number, counted from 1."""

    def __init__(self, number: int, kind: type[BaseException]) -> None:
        self.kind = kind
        self.came = False
        """True if the action had at least this number of places."""
        self.where = ""
        self._left = number
        self._last: dict[FrameType, int] = {}

    def run(self, action: Callable[[], object]) -> None:
        """Run the action. An exception that leaves it is passed on."""
        assert threading.current_thread() is threading.main_thread()
        start, stop = (
            (self._monitor, self._end_monitoring)
            if _TRACES_ARE_INCOMPLETE
            else (self._begin_tracing, self._end_tracing)
        )
        start()
        try:
            action()
        finally:
            stop()
            self._last.clear()

    def _begin_tracing(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def _end_tracing(self) -> None:
        sys.settrace(self._before)

    def _monitor(self) -> None:
        monitoring: Any = vars(sys)["monitoring"]

        def watch(kind: str, can_be_disabled: bool) -> Any:
            def tell(*_: object) -> Any:
                if threading.current_thread() is not threading.main_thread():
                    return None
                is_of_interest = self._trace(sys._getframe(1), kind, None) is not None or self.came
                return None if is_of_interest or not can_be_disabled else monitoring.DISABLE

            return tell

        monitoring.use_tool_id(_TOOL, "interrupts")
        for event, (kind, can_be_disabled) in _EVENTS.items():
            monitoring.register_callback(
                _TOOL, getattr(monitoring.events, event), watch(kind, can_be_disabled)
            )
        monitoring.set_events(_TOOL, sum(getattr(monitoring.events, event) for event in _EVENTS))
        monitoring.restart_events()

    def _end_monitoring(self) -> None:
        monitoring: Any = vars(sys)["monitoring"]
        monitoring.set_events(_TOOL, 0)
        for event in _EVENTS:
            monitoring.register_callback(_TOOL, getattr(monitoring.events, event), None)
        monitoring.free_tool_id(_TOOL)

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if self.came or str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _PACKAGES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call":
            self._pass(frame)
        elif event == "opcode":
            last = self._last.get(frame)
            if last is not None and last in _checks_of(frame.f_code):
                self._pass(frame)
            self._last[frame] = frame.f_lasti
        elif event == "return":
            self._last.pop(frame, None)
            if frame.f_back is not None:
                # Python does not look for signals at the end of a call of Python code.
                self._last.pop(frame.f_back, None)
        return self._trace

    def _pass(self, frame: FrameType) -> None:
        self._left -= 1
        if not self._left:
            self.came = True
            self.where = (
                f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} "
                f"{frame.f_code.co_qualname}"
            )
            raise self.kind


_CHECKS: dict[CodeType, frozenset[int]] = {}


def _checks_of(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions at whose end Python looks for signals."""
    found = _CHECKS.get(code)
    if found is None:
        names = ("CALL", "JUMP_BACKWARD")
        found = _CHECKS[code] = frozenset(
            instruction.offset
            for instruction in dis.get_instructions(code)
            if instruction.opname.startswith(names)
        )
    return found
