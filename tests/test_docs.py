"""What the docs show is run, and what they link to is there."""

from __future__ import annotations

import re
import unittest
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks() -> list[object]:
    """Every Python block of every page."""
    found = []
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append(pytest.param(code, id=f"{page.name}-{number}"))
    return found


@pytest.mark.parametrize("code", python_blocks())
def test_python_blocks_run(code: str) -> None:
    """Each block runs as it stands, and a test that it declares passes."""
    names: dict[str, object] = {"__name__": "docs"}
    exec(compile(code, "docs", "exec"), names)
    for value in names.values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            value.settings = settings(max_examples=10, stateful_step_count=20)  # type: ignore[attr-defined]
            result = value("runTest").run()
            assert result is not None
            assert result.wasSuccessful(), result.failures + result.errors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links and pictures within the project exist."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
