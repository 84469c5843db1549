"""Servers on loopback for the tests of the tools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bench import Bench, clean_bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """See Bench. After the test no thread named roomkit* and no socket is left that was not there before."""
    with clean_bench() as made:
        yield made
