"""What the pages show is true: their Python runs, their commands exist, their names are real.

A fence ``python`` says how it is tried:

* ``python``: a whole program, run as it stands (in ``docs/`` itself by ``tests/test_docs.py``, deeper by this file);
* ``python continued``: goes on from the blocks above it on the page, which are run in order;
* ``python NAME.py``: a file of the tutorial, which ``test_tutorial.py`` follows;
* ``py``: a fragment of a program that is not there; it must be Python, but is not run by this file.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import unittest
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from support.markdown import DOCS, PAGES, README, README_ZH, ROOT, Fence, fences, in_backticks, page_id, prose

from roomkit import RoomManager, cli
from roomkit.backends.memory import MemoryBackend
from roomkit.errors import CLOSE_CODES
from roomkit.server import Server
from roomkit.settings import SETTINGS, Settings


def python_pages() -> list[Path]:
    """Pages whose blocks belong together, or that nobody else tries."""
    pages = [page for page in PAGES if any(fence.language == "python" for fence in fences(page))]
    return [page for page in pages if page.parent not in (DOCS, ROOT) or "continued" in {f.more for f in fences(page)}]


def run_block(fence: Fence, names: dict[str, object]) -> None:
    """Run it, and the tests that it declares."""
    before = set(names)
    exec(compile(fence.code, "docs", "exec"), names)
    for name in set(names) - before:
        value = names[name]
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            value.settings = hypothesis_settings(max_examples=10, stateful_step_count=20)  # type: ignore[attr-defined]
            result = value("runTest").run()
            assert result is not None
            assert result.wasSuccessful(), result.failures + result.errors


@pytest.mark.parametrize("page", python_pages(), ids=page_id)
def test_python_blocks_run(page: Path) -> None:
    """In the order of the page; each that stands alone begins with nothing."""
    names: dict[str, object] = {}
    for fence in fences(page):
        if fence.language == "python" and fence.more in ("", "continued"):
            if not fence.more:
                names = {"__name__": "docs"}
            run_block(fence, names)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_say_how_they_are_tried(page: Path) -> None:
    """Every one is Python, and of one of the four kinds."""
    for fence in fences(page):
        assert fence.language not in ("python3", "{code-block}"), "write ```python"
        if fence.language in ("python", "py"):
            ast.parse(fence.code)
        if fence.language == "python" and fence.more not in ("", "continued"):
            assert page == DOCS / "tutorial.md", f"nobody tries {fence.more}"


# Commands.


def commands(page: Path) -> Iterator[list[str]]:
    """Each ``roomkit COMMAND ...`` of the page, in words, from blocks and from between backticks."""
    texts = [*in_backticks(page), *(fence.code for fence in fences(page) if fence.language in ("sh", "ini", "console"))]
    for text in texts:
        for found in re.findall(r"(?:^|[\s/=;&])(?:python3? -m )?roomkit ([a-z-][^\n;&|#]*)", f" {text}"):
            yield shlex.split(found)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_flags_exist(page: Path) -> None:
    """The command line's own parser takes each; where a value is a stand-in (N, ...), only its flag is looked at."""
    parser, known = cli._parsers()
    for words in commands(page):
        name = words[0]
        if name.startswith("-"):
            assert name in parser._option_string_actions, words
            continue
        assert name in known, f"there is no roomkit {name}"
        stand_ins = any(re.fullmatch(r"[A-Z_]+|\.\.\.|…", word) for word in words)
        if stand_ins or len(words) == 2:
            for flag in (word for word in words[1:] if word.startswith("-")):
                assert flag.partition("=")[0] in known[name]._option_string_actions, f"roomkit {name} has no {flag}"
        else:
            known[name].parse_words(words[1:])


def test_the_parser_finds_a_wrong_command() -> None:
    """The test above would notice: a command and a flag that do not exist."""
    assert list(commands(README)), "the README shows none"
    _, known = cli._parsers()
    assert "serf" not in known
    with pytest.raises(SystemExit):
        known["serve"].parse_words(["--prot", "1"])


# Names.

FLAGS = {flag for command in cli._parsers()[1].values() for flag in command._option_string_actions} | {
    flag
    for path in (ROOT / "benchmarks").glob("*.py")
    for flag in re.findall(r'add_argument\("(--[a-z-]+)"', path.read_text(encoding="utf-8"))
}
ENVIRONMENT = {setting.env for setting in SETTINGS} | {"ROOMKIT_CONFIG", "ROOMKIT_URL"}
#: What other programs call their own: gunicorn, proxies, the kernel.
OTHERS = {
    *("--threads", "--worker-connections", "--worker-class", "--max-requests", "--graceful-timeout", "--timeout"),
    *(
        "--bind",
        "--peers",
        "--preload",
        "--keep-alive",
        "url_param",
        "proxy_read_timeout",
        "ip_local_port_range",
        "tcp_wmem",
        "tcp_rmem",
    ),
}


def words_of_the_code() -> set[str]:
    """Every name and every word in a text of roomkit's own code, its examples and the tests' helpers."""
    files = [
        path
        for folder in ("roomkit", "examples", "tests", "deploy", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".js", ".ts", ".mjs", ".html")
        and path.is_file()
        and not {"docs", "node_modules"} & set(path.parts)
    ]
    found: set[str] = set()
    for path in files:
        found |= set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", path.read_text(encoding="utf-8")))
    return found


def metrics() -> set[str]:
    """The names of all metrics, as a scraper sees them."""
    rooms = RoomManager(backend=MemoryBackend())  # so that those of shared rooms are there
    with Server(rooms, Settings(port=0)) as server, urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    return set(re.findall(r"^(?:# TYPE )?([a-z_]+)[ {]", text, re.MULTILINE))


@pytest.fixture(scope="module")
def real_metrics() -> set[str]:
    return metrics()


@pytest.fixture(scope="module")
def vocabulary() -> set[str]:
    return words_of_the_code()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_in_backticks_are_real(page: Path, vocabulary: set[str], real_metrics: set[str]) -> None:
    """Flags, variables, metrics, and whatever is written_like_this: settings, codes, events, operations, functions."""
    own = set(re.findall(r"\w+", " ".join(fence.code for fence in fences(page))))
    for text in in_backticks(page):
        if text.startswith(("--", "roomkit ")):
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
                assert flag in FLAGS | OTHERS, f"there is no flag {flag}"
        for variable in re.findall(r"\bROOMKIT_[A-Z_]+\b", text):
            assert variable in ENVIRONMENT or "TEST" in variable, f"there is no variable {variable}"
        if re.fullmatch(r"(roomkit|process|python)_\w+", text):
            assert text in real_metrics, f"there is no metric {text}"
        elif re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", text):
            known = text in vocabulary | own | OTHERS or "--" + text.replace("_", "-") in OTHERS
            assert known, f"nothing is called {text}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_close_codes_in_the_text_are_real(page: Path) -> None:
    """A number from 4000 to 4999 is a close code of the table, or the border of a range."""
    for code in map(int, re.findall(r"(?<![\d.,:/-])4\d{3}(?![\d,]|\.\d)", prose(page))):
        assert code in CLOSE_CODES or code in (4000, 4499, 4999), f"there is no close code {code}"


def test_all_pages_are_looked_at() -> None:
    """The lists above are not empty by mistake."""
    assert len(PAGES) > 20
    assert README_ZH in PAGES
    assert os.path.exists(DOCS / "conf.py")
