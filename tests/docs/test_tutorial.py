"""The tutorial, from its first line to its last, as somebody does it who follows it: real files, processes and tabs.

A fence ``python rules.py`` is a file to be saved under that name; ``sh`` is typed into a shell, ``text`` is what that
prints. Every block of the page is met, in the page's order: one that is added to the page is an error here until it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE
from support.pages import NETWORK_LOST, Visitor, Visitors, browser

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
ADDRESS = "http://127.0.0.1:8000"  # as the page has it; the test's own port takes its place
INSTALL = "python3 -m venv .venv && .venv/bin/pip install '.[test]'"  # the README's two lines, run by CI as they stand

#: How many squares a page shows as taken.
TAKEN = "[...document.querySelectorAll('#board button')].filter((b) => b.textContent).length"

#: Finds the fault, and does not look for the shortest way to it, which takes half a minute.
WITHOUT_SHRINKING = """
from hypothesis import Phase, settings
settings.register_profile("found", phases=[Phase.generate], derandomize=True)
settings.load_profile("found")
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    yield from browser()


class Reader:
    """Somebody who follows the page, block by block, in a folder of their own."""

    def __init__(self, home: Path) -> None:
        self.folder = home
        self.address = ADDRESS
        found = re.findall(r"^```(\w+)(?: ([\w./-]+))?\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)
        self._blocks: list[tuple[str, str, str]] = found
        tools = home / ".venv" / "bin"
        tools.mkdir(parents=True)
        for name, words in (("python", ""), ("pytest", " -m pytest -p no:cacheprovider")):
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
            (tools / name).chmod(0o755)
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def left(self) -> int:
        return len(self._blocks)

    def save(self, *names: str) -> None:
        """The next blocks are these files."""
        for name in names:
            language, title, code = self._blocks.pop(0)
            assert title == name, f"the page has {language} {title} where {name} was expected"
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)

    def command(self) -> str:
        """The next block is a command; what is to be typed."""
        language, _, code = self._blocks.pop(0)
        assert language == "sh", f"the page has {language} where a command was expected: {code}"
        return code.strip().replace(ADDRESS, self.address)

    def type(self, command: str) -> str:
        """Type it into a shell, which goes on in the folder in which it ends; what it prints."""
        done = subprocess.run(
            ["bash", "-ec", f"{command}\npwd >&2"],
            cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        self.folder = Path(done.stderr.splitlines()[-1])
        return done.stdout

    def expected(self) -> str:
        """The next block is what was printed."""
        language, _, text = self._blocks.pop(0)
        assert language == "text"
        return text

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """Typed into another terminal; at the end Ctrl-C, on which it must end well."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._env, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            self.address = re.fullmatch(r"play on (http://127\.0\.0\.1:\d+)\n", line)[1]  # type: ignore[index]
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def says(visitor: Visitor, text: str) -> None:
    """The page's line says that, now or soon."""
    visitor.wait_until("document.getElementById('status').textContent.includes(x)", text)


def take(visitor: Visitor, square: int) -> None:
    visitor.page.get_by_role("button", name=f"square {square}").click()


def shows(visitor: Visitor, board: str) -> None:
    """The page shows that board, now or soon."""
    visitor.wait_until(
        "[...document.querySelectorAll('#board button')].map((b) => b.textContent || '.').join('') === x", board
    )


def in_the_browser(reader: Reader, command: str, chromium: Any) -> None:
    """What the section "Play" says, and that it fits a phone."""
    with Visitors(chromium) as visitors:
        with reader.running(f"{command} 0"):
            amy = visitors(reader.address, "Amy")
            bob = visitors(reader.address, "Bob", phone=True)
            amy.page.goto(reader.address)
            says(amy, "Waiting for somebody")
            bob.page.goto(reader.address)
            says(amy, "You are X. Your turn.")
            says(bob, "You are O. Wait for the other one.")
            take(bob, 0)
            says(bob, "it is not your turn")
            shows(amy, ".........")
            take(amy, 4)
            shows(bob, "....X....")
            says(bob, "Your turn")
            bob.page.reload()
            shows(bob, "....X....")
            says(bob, "You are O. Your turn.")
            take(bob, 0)
            shows(amy, "O...X....")

            bob.pardoned = NETWORK_LOST
            bob.context.set_offline(True)
            says(bob, "The network is gone")
            says(amy, "the other one is away")
            take(amy, 2)
            shows(amy, "O.X.X....")
            bob.context.set_offline(False)
            shows(bob, "O.X.X....")
            says(bob, "Your turn")
            bob.pardoned = None
            take(bob, 1)
            shows(amy, "OOX.X....")
            amy.shoot("tutorial-desktop")
            bob.shoot("tutorial-phone")
            bob.expect_fits()
            take(amy, 6)
            says(amy, "You have won!")
            says(bob, "You have lost.")
            bob.page.get_by_role("button", name="Play again").click()
            shows(amy, ".........")
            amy.pardoned = bob.pardoned = NETWORK_LOST
        port = reader.address.rsplit(":", 1)[1]
        with reader.running(f"{command} {port}"):
            for visitor in (amy, bob):
                says(visitor, "there is no room")
                says(visitor, "Reload to play again")
                visitor.page.reload()
            for visitor in (amy, bob):
                says(visitor, "You are")
                visitor.pardoned = None  # not before: what a try of the old page met may be told late
            amy.pardoned = bob.pardoned = NETWORK_LOST  # the server ends before their pages do


@pytest.mark.timeout(300)
def test_the_tutorial_works_as_it_is_written(tmp_path: Path, chromium: Any) -> None:
    """Every block in the order of the page, and what it says that one will see."""
    reader = Reader(tmp_path)
    assert reader.command() == INSTALL
    reader.type(reader.command())
    assert reader.folder.name == "tictactoe"
    reader.save("rules.py", "alone.py")
    assert reader.type(reader.command()) == reader.expected()

    reader.save("game.py", "page/index.html", "page/game.js")
    serve = reader.command()
    in_the_browser(reader, serve, chromium)
    with reader.running(f"{serve} 0"), Visitors(chromium) as visitors:
        amy = visitors(reader.address, "Amy")
        amy.page.goto(reader.address)
        says(amy, "Waiting for somebody")
        watch = reader.command()
        if shutil.which("curl"):
            assert json.loads(reader.type(watch))["total_rooms"] == 1

        reader.save("bot.py")
        bot = subprocess.Popen(
            ["bash", "-c", f"exec {reader.command()} 2"],
            cwd=reader.folder,
            env=reader._env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            for _ in range(2):
                says(amy, "You are X")
                while True:
                    amy.wait_until("/Your turn|won|lost|draw/.test(document.getElementById('status').textContent)")
                    if "Your turn" not in amy.text("#status"):
                        break
                    taken = amy.page.evaluate(TAKEN)
                    amy.page.locator("#board button:enabled").first.click()
                    amy.wait_until(f"{TAKEN} > x", taken)
                amy.page.get_by_role("button", name="Play again").click()
            assert bot.stdout is not None
            winners = re.findall("winner: (X|O|nobody)\n", bot.stdout.read())
            assert len(winners) == 2
            assert bot.wait(PATIENCE) == 0
        finally:
            bot.kill()
            bot.communicate()

    reader.save("test_rules.py")
    test = reader.command()
    assert "1 passed" in reader.type(test)
    assert reader.left == 0, "the page has blocks that nobody has tried"

    # "Break a rule on purpose": the test of the page does what the page says of it.
    rules = (reader.folder / "rules.py").read_text()
    asked = "player_id is None or mark_of(state, player_id) != turn_of(board)"
    assert asked in rules
    (reader.folder / "rules.py").write_text(rules.replace(asked, "player_id is None"))
    (reader.folder / "conftest.py").write_text(WITHOUT_SHRINKING)
    done = subprocess.run(
        ["bash", "-c", test], cwd=reader.folder, env=reader._env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    assert "moved twice" in done.stdout
