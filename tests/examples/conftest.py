"""A browser, and people in it, for the examples' pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.pages import Visitors, browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A Chromium."""
    yield from browser()


@pytest.fixture
def visitors(chromium: Any) -> Iterator[Visitors]:
    """Makes visitors, and looks at what their pages had to complain of."""
    with Visitors(chromium) as made:
        yield made
