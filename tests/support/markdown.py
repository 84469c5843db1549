"""The Markdown pages of the project, taken apart: fences, prose, what stands in backticks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README, README_ZH = ROOT / "README.md", ROOT / "README.zh-TW.md"
PAGES = [README, README_ZH, *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


class Fence(NamedTuple):
    """A block of code. ``info``: what stands behind the backticks: a language, and maybe more."""

    language: str
    more: str
    code: str


def page_id(page: Path) -> str:
    """A page's name in the output of a test."""
    return str(page.relative_to(ROOT))


def fences(page: Path) -> list[Fence]:
    """The blocks of code, in order; those in a list are moved to the left."""
    found = []
    for indent, _, info, code in _FENCE.findall(page.read_text(encoding="utf-8")):
        language, _, more = info.strip().partition(" ")
        found.append(Fence(language, more.strip(), re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)))
    return found


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def in_backticks(page: Path) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of the page's table whose heading begins with that cell; without the heading."""
    rows: list[list[str]] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first_column:
            inside = True
        elif inside and not line.startswith("|-"):
            rows.append(cells)
    assert rows, f"{page.name} has no table that begins with {first_column}"
    return rows
