"""Python's garbage collector, in a process that is a server and nothing else."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any


class ShortCollections:
    """While it is entered, collections look at what is new; at everything at most once in ``whole_every`` seconds.

    A full collection visits every object that can be in a cycle while everything waits: with 8,000 connections a tenth
    of a second, which is ten times a good latency's 99th percentile. So what has survived two collections is set aside
    (``gc.freeze``), and the next visits only what came since. What has been set aside is freed like anything else when
    nothing refers to it any more; only cycles among it wait for the next look at everything. roomkit's connections and
    rooms leave none behind.

    For the whole process, so for a program of one's own to decide: ``roomkit serve`` does it, ``Server`` does not.

    Args:
        whole_every: seconds from a look at everything to the next, which begins when Python finds a full collection
            due. clock: monotonic seconds.

    Thread safety: enter and leave it in one thread; collections may happen in any.
    """

    def __init__(self, whole_every: float = 900.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._whole_every = whole_every
        self._clock = clock
        self._whole_due = clock() + whole_every

    def __enter__(self) -> ShortCollections:
        gc.collect()
        gc.freeze()  # what was imported
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *exc: object) -> None:
        gc.callbacks.remove(self._on_collection)
        gc.unfreeze()

    def _on_collection(self, phase: str, info: Mapping[str, Any]) -> None:
        if info["generation"] == 0:
            return
        if phase == "stop":
            gc.freeze()
        elif info["generation"] == 2 and self._clock() >= self._whole_due:
            self._whole_due = self._clock() + self._whole_every
            gc.unfreeze()  # into the generation that is about to be collected
