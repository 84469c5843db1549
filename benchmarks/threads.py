"""Threads that are started together and joined with a bound."""

from __future__ import annotations

import threading

_PATIENCE = 60.0  # seconds; only ever waited for by a failure


def run_all(threads: list[threading.Thread]) -> None:
    """Start and join them.

    Raises:
        TimeoutError: one did not end in time; it still runs.
    """
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE)
        if thread.is_alive():
            raise TimeoutError(f"{thread.name} did not end within {_PATIENCE:g} s")
