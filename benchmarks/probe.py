"""What a thread does, counted: calls, bytecode instructions, locks taken, system calls. No clock: twice the same.

The interpreter tells (``sys.setprofile``, ``sys.settrace``), so nothing of what is counted has to be replaced. A lock
is counted when it is let go, since that is a call in every version of Python, also at the end of a ``with`` block,
whereas the beginning of one is not. System calls that modules make in C, beneath a call that is counted, are not seen.
"""

from __future__ import annotations

import gc
import select
import socket
import statistics
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, NamedTuple

_LOCKS: tuple[type, ...] = (type(threading.Lock()), type(threading.RLock()))
_RELEASES = {"release", "__exit__", "release_lock"}
_WRITES = {"send", "sendall", "sendmsg", "sendto", "write", "writev"}
_READS = {"recv", "recv_into", "recvmsg", "recvfrom", "read", "readv"}
_POLLS = {"poll", "select"}
_OTHERS = {"accept", "_accept", "close", "setsockopt", "shutdown", "register", "unregister", "modify", "sleep"}
_DESCRIPTORS: tuple[type, ...] = (
    socket.socket.__mro__[1],  # its methods are those of the type beneath, which are C
    *([select.epoll] if hasattr(select, "epoll") else []),
)
_MODULES = {"posix", "time", "select"}


class Work(NamedTuple):
    """Counted between two moments."""

    calls: float = 0  #: of functions written in Python
    c_calls: float = 0  #: of functions written in C
    opcodes: float = 0  #: bytecode instructions
    locks: float = 0  #: taken
    polls: float = 0
    reads: float = 0
    writes: float = 0
    other: float = 0  #: system calls besides these three

    def plus(self, other: Work) -> Work:
        """Both together."""
        return Work(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: Work) -> Work:
        """What is more than in ``other``."""
        return Work(*(mine - its for mine, its in zip(self, other, strict=True)))

    def shared(self, by: int) -> Work:
        """For each of ``by``."""
        return Work(*(mine / by for mine in self))


def typical(works: Iterable[Work]) -> Work:
    """The median of each number."""
    return Work(*(statistics.median_low(column) for column in zip(*works, strict=True)))


class Probe:
    """Counts what the thread does that calls :meth:`start`, until it calls :meth:`stop`.

    Attributes:
        turns: for a thread that waits in a poll, over and over: the work from each wait to the next. What came before
            the first wait is not in it.

    Thread safety: none; :attr:`turns` may be read after the stop.
    """

    def __init__(self) -> None:
        self.turns: list[Work] = []
        self._in_turn = False
        self._others: tuple[Any, Any] = (None, None)
        self._reset()

    def _reset(self) -> None:
        self._counts = dict.fromkeys(Work._fields, 0)

    @property
    def work(self) -> Work:
        """Since the start, or the last wait."""
        return Work(**self._counts)

    def start(self) -> None:
        """Begin. What runs already is counted by its calls, not by its instructions."""
        self._others = sys.gettrace(), sys.getprofile()
        sys.settrace(self._trace)
        sys.setprofile(self._profile)

    def stop(self) -> None:
        """End; a tracer that was there before (a debugger's, a coverage report's) is there again."""
        trace, profile = self._others
        sys.setprofile(profile)
        sys.settrace(trace)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "opcode":
            self._counts["opcodes"] += 1
        else:
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
        return self._trace

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            self._counts["calls"] += 1
        elif event == "c_call":
            kind = _kind_of(arg)
            if kind == "polls":
                if self._in_turn:
                    self.turns.append(self.work)
                self._in_turn = True
                self._reset()
            self._counts["c_calls"] += 1
            if kind is not None:
                self._counts[kind] += 1


def _kind_of(function: Any) -> str | None:
    name = function.__name__
    owner = getattr(function, "__self__", None)
    if name in _RELEASES:
        return "locks" if isinstance(owner, _LOCKS) else None
    if isinstance(owner, _DESCRIPTORS) or getattr(function, "__module__", None) in _MODULES:
        for kind, names in (("polls", _POLLS), ("reads", _READS), ("writes", _WRITES), ("other", _OTHERS)):
            if name in names:
                return kind
    return None


def count(function: Callable[[], object]) -> Work:
    """What one call of ``function`` does, on this thread; the call itself is left out.

    From Python 3.12 on instructions are counted from the second time on that a function runs under a probe: count
    several times and take the :func:`typical` one.
    """
    probe = Probe()
    enabled = gc.isenabled()
    gc.disable()
    probe.start()
    try:
        function()
    finally:
        probe.stop()
        if enabled:
            gc.enable()
    return probe.work.minus(_own())


def _own() -> Work:
    """What :func:`count` finds in doing nothing: a call, and how the probe ends."""
    for _ in range(2):  # from Python 3.12 on a function's instructions are counted from the second time on
        probe = Probe()
        probe.start()
        try:
            _nothing()
        finally:
            probe.stop()
    return probe.work


def _nothing() -> None:
    return None
