"""Puts the simulated primitives where roomkit's modules look the real ones up, and shows that none was forgotten."""

from __future__ import annotations

import _thread
import asyncio
import gc
import logging
import os
import queue
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType

from . import primitives as p
from .scheduler import SimulationOver, active

#: What stands for what. By identity: ``from time import monotonic`` is found too, under whatever name.
STAND_INS: list[tuple[object, object]] = [
    (threading, p.THREADING),
    (time, p.TIME),
    (select, p.SELECT),
    (selectors, p.SELECTORS),
    (socket, p.SOCKET),
    (threading.Lock, p.Lock),
    (threading.Condition, p.Condition),
    (threading.Event, p.Event),
    (threading.Thread, p.Thread),
    (threading.get_ident, p.get_ident),
    (threading.current_thread, p.current_thread),
    (time.monotonic, p.clock),
    (time.perf_counter, p.clock),
    (time.time, p.wall),
    (time.sleep, p.sleep),
]

#: Nothing stands for these: a module that uses one cannot be simulated yet.
WITHOUT = (
    *(threading.RLock, threading.Semaphore, threading.Barrier, threading.Timer, threading.local, queue.SimpleQueue),
    *(_thread, asyncio, signal),
)

#: Imported by the library, but no part of what is simulated.
NOT_SIMULATED = ("roomkit.testing", "roomkit.log", "roomkit.client", "roomkit.server", "roomkit.embed", "roomkit.tools")
#: But for these.
SIMULATED = ("readerwriterlock.rwlock", "roomkit.server.reactor", "roomkit.server.session")

#: Pure functions behind these modules' doors: a switch within them could change nothing, and one keeps a cache.
NOT_TRACED = ("roomkit.core.events", "roomkit.core.ids", "roomkit.core.snapshot", "roomkit.errors", "roomkit.listing")

#: cached_property of Python 3.10 and 3.11 holds a real lock around these.
_UNDER_A_REAL_LOCK = frozenset({"not_full", "not_empty", "all_tasks_done"})


class Log:
    """Stands for a module's logger: hands every record to the run."""

    def __init__(self, real: logging.Logger) -> None:
        self.name = real.name

    def _say(self, level: str, text: str, args: tuple[object, ...]) -> None:
        scheduler = active()
        if scheduler.over:
            raise SimulationOver
        p.check_no_locks(scheduler, f"the log handler ({text})")
        scheduler.world.logged(level, text % args if args else text, sys.exc_info()[1])

    def exception(self, text: str, *args: object) -> None:
        self._say("error", text, args)

    def error(self, text: str, *args: object) -> None:
        self._say("error", text, args)

    def critical(self, text: str, *args: object, exc_info: bool = False) -> None:
        self._say("error", text, args)

    def warning(self, text: str, *args: object) -> None:
        self._say("warning", text, args)

    def info(self, text: str, *args: object) -> None:
        self._say("info", text, args)

    debug = info


def modules() -> list[ModuleType]:
    """All that is simulated: every loaded module of the library, and the reader-writer lock's."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if name in SIMULATED or (name.startswith("roomkit") and not name.startswith(NOT_SIMULATED))
    ]


def is_traced(code: CodeType) -> bool:
    """Whether the lines of this code are switch points."""
    if code.co_name in _UNDER_A_REAL_LOCK:
        return False
    return code.co_filename in _traced_files()


_files: set[str] = set()


def _traced_files() -> set[str]:
    if not _files:
        for module in modules():
            if module.__name__.startswith("roomkit") and not module.__name__.startswith(NOT_TRACED):
                _files.add(module.__file__ or "")
    return _files


def _stand_in(value: object) -> object | None:
    for real, simulated in STAND_INS:
        if value is real:
            return simulated
    if isinstance(value, logging.Logger):
        return Log(value)
    return None


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Every function and method that the module defines."""
    seen: set[int] = set()
    todo: list[object] = list(vars(module).values())
    while todo:
        value = todo.pop()
        if id(value) in seen or getattr(value, "__module__", module.__name__) != module.__name__:
            continue
        seen.add(id(value))
        if isinstance(value, type):
            todo += vars(value).values()
        elif isinstance(value, (staticmethod, classmethod)):
            todo.append(value.__func__)
        elif isinstance(value, property):
            todo += [part for part in (value.fget, value.fset) if part is not None]
        elif isinstance(value, FunctionType):
            todo.append(getattr(value, "__wrapped__", None))
            yield value


def _places() -> Iterator[tuple[Callable[[object], None], object, object]]:
    """Where a real primitive stands: how to put something there, what is there, and what is to be there."""
    for module in modules():
        names = vars(module)
        for name, value in list(names.items()):
            simulated = _stand_in(value)
            if simulated is not None:
                yield (lambda new, names=names, name=name: names.__setitem__(name, new)), value, simulated
        for function in _functions(module):
            defaults, keywords = function.__defaults__, function.__kwdefaults__
            if defaults and any(_stand_in(value) is not None for value in defaults):
                new = tuple(value if _stand_in(value) is None else _stand_in(value) for value in defaults)
                yield (lambda new, f=function: setattr(f, "__defaults__", new)), defaults, new
            for name, value in (keywords or {}).items():
                simulated = _stand_in(value)
                if simulated is not None:
                    yield (lambda new, k=keywords, name=name: k.__setitem__(name, new)), value, simulated


def real_ones() -> list[str]:
    """Real primitives that the modules hold by a name, by a default, or as a value: none while patched."""
    found = []
    kinds = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, queue.Queue)
    real = [value for value, _ in STAND_INS] + list(WITHOUT)
    for module in modules():
        for name, value in vars(module).items():
            if any(value is one for one in real) or isinstance(value, (*kinds, logging.Logger)):
                found.append(f"{module.__name__}.{name}")
        for function in _functions(module):
            values = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
            if any(value is one for value in values for one in real):
                found.append(f"{module.__name__}.{function.__qualname__}: a default")
    return found


def real_locks_of(*roots: object) -> list[object]:
    """Real locks, conditions and threads that can be reached from these objects, by way of roomkit's own."""
    kinds = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Thread)
    found: list[object] = []
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kinds):
            found.append(value)
        elif isinstance(value, (dict, list, tuple, set)) or type(value).__module__.startswith(
            ("roomkit", "readerwriterlock")
        ):
            todo += gc.get_referents(value)
    return found


@contextmanager
def one_core() -> Iterator[None]:
    """One thread runs at a time anyway; when they share a core, a run takes half the time."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def patched() -> Iterator[None]:
    """Within the block roomkit's library works with the primitives of the run that is under way."""
    from . import sharing, watch  # they import all of roomkit that is simulated  # noqa: F401

    undo = []
    try:
        for put, old, new in list(_places()):
            put(new)
            undo.append((put, old))
        with watch.watched(), one_core():
            left = real_ones()
            assert not left, f"real primitives in a simulated run: {', '.join(left)}"
            yield
    finally:
        for put, old in reversed(undo):
            put(old)
