"""docs/limits.md says what is so: its settings have those defaults, its metrics are counted, its tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.bench import Bench
from witness import Witness

from roomkit.server.metrics import _COUNTERS, _KNOWN_LABELS
from roomkit.settings import SETTINGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_default_is_the_setting_s() -> None:
    """Wherever a setting stands with a number behind it."""
    defaults = {setting.name: setting.default_text for setting in SETTINGS}
    told = re.findall(r"`(\w+)` (\d+)\b", "\n".join(row[1] for row in ROWS if len(row) == 5))
    assert len(told) > 15
    assert [(name, default) for name, default in told if defaults[name] != default] == []


def test_every_limit_is_on_the_page() -> None:
    """Each label of roomkit_limited_total; and what else is named as counting does count."""
    counted = set(re.findall(r"`(\w+)`", "\n".join(row[3] for row in ROWS if len(row) == 5)))
    assert set(_KNOWN_LABELS["limited"]) <= counted
    metrics = {f"{metric}_total" for metric, _, _ in _COUNTERS.values()}
    assert {name for name in counted if name.startswith("roomkit_")} <= metrics


def test_every_line_has_a_test_that_is_there() -> None:
    """A link to a function that stands in that file."""
    for row in ROWS:
        if row[0].startswith("somebody") or set(row[0]) <= set("-"):
            continue
        links = re.findall(r"\]\(\.\./(tests/[\w/]+\.py)#(test_\w+)\)", row[-1])
        assert links, row[0]
        for path, name in links:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_a_witness_who_is_not_served_says_so(bench: Bench) -> None:
    """The helper is no check that lets everything pass: a server that goes away, and a trip that takes too long."""
    server = bench.serve()
    witness = Witness(server.listener.address).__enter__()
    assert server.stop()
    # Its room is closed before its connection is: it is refused by the one or told by the other.
    with pytest.raises(AssertionError, match=r"Closed|is closed"):
        witness.__exit__(None, None, None)
    witness = Witness(bench.serve().listener.address).__enter__()
    witness.trips.append(60.0)
    with pytest.raises(AssertionError, match="waited"):
        witness.__exit__(None, None, None)
