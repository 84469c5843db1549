"""``python -m roomkit`` as a user or a service manager meets it: real processes, and no wait without a bound."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from typing import IO, Any

import pytest
from support.fakes import PATIENCE
from support.serve import ROOT


def environment(**more: str) -> dict[str, str]:
    """This process's, without what is roomkit's or says how Python buffers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROOMKIT_") and k != "PYTHONUNBUFFERED"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "120", **more}


def roomkit(*words: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(
        [sys.executable, "-m", "roomkit", *words],
        env=environment(**(env or {})),
        encoding="utf-8",
        timeout=60,
        check=False,
        **more,
    )


def sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """What a run that failed said: exactly one line, on standard error."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith("\n")
    assert "Traceback" not in done.stderr
    return done.stderr[:-1]


class Running:
    """A command that runs, with a thread for each of its pipes. ``out`` and ``err`` are its lines."""

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roomkit", *words],
            env=environment(**(env or {})),
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out: queue.Queue[str] = queue.Queue()
        self.err: queue.Queue[str] = queue.Queue()
        pipes = [(self.process.stdout, self.out), (self.process.stderr, self.err)]
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: IO[str], lines: queue.Queue[str]) -> None:
        for line in pipe:
            lines.put(line.rstrip("\n"))
        pipe.close()

    def until(self, pattern: str, lines: queue.Queue[str] | None = None) -> list[str]:
        """The next lines, up to one that has this in it."""
        seen: list[str] = []
        while not (seen and re.search(pattern, seen[-1])):
            try:
                seen.append((self.out if lines is None else lines).get(timeout=PATIENCE))
            except queue.Empty:
                pytest.fail(f"{pattern} never came; there was {seen}, and {list(self.err.queue)}")
        return seen

    def end(self) -> int:
        """Its exit status; every line has been read then."""
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is None:
            self.process.kill()
        self.end()
