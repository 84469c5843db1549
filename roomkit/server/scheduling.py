"""When the threads of a server process get a core, in a process that is a server and nothing else."""

from __future__ import annotations

import os


class PatientThreads:
    """While it is entered, threads that this one starts, and this one, do not take the core from whoever wakes them.

    By default Linux lets a thread that was asleep go first. In one interpreter it finds that it cannot: that is held by
    the thread which has woken it, and has just been stopped for it: the core changes hands twice for nothing. As a
    batch process's (``SCHED_BATCH``, sched(7)) it waits until there is a free core, or its turn. In a full server that
    shares its rooms threads were stopped once for every third message, and for every twelfth then; it does a tenth to a
    fifth more. One that has little to do is as fast as before.

    Where the system has no such thing, does not allow it, or somebody has chosen another policy, nothing happens.

    For the whole process, so for a program of one's own to decide: ``roomkit serve`` does it, ``Server`` does not.

    Thread safety: enter and leave it in one thread.
    """

    def __init__(self) -> None:
        self._changed = False

    def __enter__(self) -> PatientThreads:
        if hasattr(os, "SCHED_BATCH"):
            self._changed = _change(os.SCHED_OTHER, os.SCHED_BATCH)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._changed:
            _change(os.SCHED_BATCH, os.SCHED_OTHER)


def _change(before: int, after: int) -> bool:
    try:
        if os.sched_getscheduler(0) != before:
            return False
        os.sched_setscheduler(0, after, os.sched_param(0))
    except OSError:
        return False
    return True
