"""``roomkit serve`` as a process of its own, as a person starts it."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from support.fakes import PATIENCE

import roomkit

ROOT = Path(roomkit.__file__).parents[1]  # of the package that is tested


class ServeProcess:
    """A running server. ``url`` is the address that it printed.

    ``program``: what is started instead of ``roomkit serve`` (a path from the root); it prints its address likewise.
    ``env``: variables to add. ``port``: where it listens; 0: anywhere.
    """

    def __init__(
        self, *flags: str, program: str | None = None, env: Mapping[str, str] | None = None, port: int = 0
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._printed = b""
        self._process = subprocess.Popen(
            [sys.executable, *((program,) if program else ("-m", "roomkit", "serve")), "--port", str(port), *flags],
            cwd=ROOT,
            # The settings of whoever runs the tests are not the tests'.
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ROOMKIT_")},
                "PYTHONPATH": str(ROOT),
                **(env or {}),
            },
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.url = self._address()
        except BaseException:
            self.stop()
            raise
        self.port = int(self.url.rsplit(":", 1)[1])

    def _address(self) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                found = re.search(rb"(http://[\w.]+:\d+)\s", self._printed)
                if found:
                    return found[1].decode()
                assert selector.select(deadline - time.monotonic()), f"no address was printed:\n{self.output}"
                data = os.read(self._process.stdout.fileno(), 4096)
                assert data, f"the server ended:\n{self.output}"
                self._printed += data

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it printed and logged so far."""
        if not self._log.closed:
            self._log.seek(0)
            self._logged = self._log.read()
        return (self._printed + self._logged).decode(errors="replace")

    def stop(self) -> int:
        """Ask it to drain, and give the exit status; killed when it does not end. Can be called again."""
        if self._process.stdout is not None and self._process.stdout.closed:
            return self._process.wait()
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            _ = self.output  # keeps what was logged
            self._log.close()
