"""Other people's WSGI servers as processes of their own, with the sites of tests/embed on them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.fakes import PATIENCE, eventually
from support.needs import need_package

import roomkit

ROOT = Path(roomkit.__file__).parents[1]  # of the package that is tested
SITES = Path(__file__).parents[1] / "embed" / "sites"

#: How each server is started with a site, and where it says its address.
COMMANDS = {
    "werkzeug": ["{site}.py", "werkzeug"],
    "runserver": ["{site}.py", "runserver"],
    "gthread": ["-m", "gunicorn", "-k", "gthread", "--threads", "4", "--worker-connections", "20", "{site}:site"],
    "sync": ["-m", "gunicorn", "-k", "sync", "{site}:site"],
}


class WsgiProcess:
    """A running server with a site on it.

    Args:
        options: for the site, see tests/embed/sites. flags: for gunicorn, before its others.
    """

    def __init__(self, site: str, server: str, *flags: str, **options: object) -> None:
        command = [part.format(site=site) for part in COMMANDS[server]]
        self.name = f"{site.removesuffix('_site')}-{server}"
        self.gunicorn = command[0] == "-m"
        if self.gunicorn:
            command += ["--bind", "127.0.0.1:0", "--graceful-timeout", "10", "--access-logfile", "-", *flags]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ROOMKIT_")}
        environ |= {f"SITE_{name.upper()}": str(value) for name, value in options.items()}
        self._start([sys.executable, *command], environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SITES}"}, SITES)

    @classmethod
    def of(cls, command: Sequence[str], cwd: Path) -> WsgiProcess:
        """Any other Python program that says its address."""
        made = cls.__new__(cls)
        made.name = command[0]
        made.gunicorn = "gunicorn" in command
        made._start([sys.executable, *command], dict(os.environ) | {"PYTHONPATH": str(ROOT)}, cwd)
        return made

    def _start(self, command: list[str], environ: dict[str, str], cwd: Path) -> None:
        self.output = ""
        self._condition = threading.Condition()
        self._home = tempfile.TemporaryDirectory()  # gunicorn keeps a socket there
        environ = environ | {"HOME": self._home.name, "PYTHONUNBUFFERED": "1"}
        environ.pop("XDG_RUNTIME_DIR", None)
        self._process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, name="test-output", daemon=True)
        self._reader.start()
        try:
            self.port = int(self.said(r"https?://127\.0\.0\.1:(\d+)")[1])
            self.address = ("127.0.0.1", self.port)
            if self.gunicorn:
                self.said("Booting worker")
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._condition:
                self.output += line.decode(errors="replace")
                self._condition.notify_all()
        with self._condition:
            self._process.stdout.close()
            self._condition.notify_all()

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed or logged this."""
        with self._condition:
            found = self._condition.wait_for(
                lambda: re.search(pattern, self.output) or not self._reader.is_alive(), PATIENCE
            )
            assert isinstance(found, re.Match), f"it did not say {pattern!r}:\n{self.output}"
            return found

    @property
    def serving(self) -> int:
        """The process that serves: gunicorn's newest worker, or the server itself."""
        if not self.gunicorn:
            return self._process.pid
        eventually(self._children)
        return self._children()[-1]

    def _children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        ]

    def threads(self) -> int:
        """Of the process that serves."""
        status = Path(f"/proc/{self.serving}/status").read_text()
        return int(re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]

    def open_files(self) -> int:
        """File descriptors of the process that serves."""
        return len(os.listdir(f"/proc/{self.serving}/fd"))

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def signal(self, name: str) -> None:
        """Send it SIG``name``."""
        self._process.send_signal(signal.Signals[f"SIG{name}"])

    def wait(self) -> int:
        """Until it has ended; the exit status."""
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End it now, with the workers that gunicorn has."""
        if self.gunicorn and self._process.poll() is None:
            for child in self._children():
                os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        self._home.cleanup()

    def stop(self) -> int:
        """:meth:`terminate` and :meth:`wait`; killed when it does not end. Can be called again."""
        self.terminate()
        try:
            return self.wait()
        finally:
            self.kill()


def start(site: str, server: str, *flags: str, **options: Any) -> WsgiProcess:
    """A site on a server; without their packages the test is skipped, or fails."""
    need_package(site, *(["gunicorn"] if server in ("gthread", "sync") else []))
    return WsgiProcess(f"{site}_site", server, *flags, **options)
