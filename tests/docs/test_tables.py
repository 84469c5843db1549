"""The tables of close codes are the one in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.markdown import DOCS, table

from roomkit import errors
from roomkit.errors import CLOSE_CODES, RoomkitError, close_code_for


def rows_of_the_code() -> list[list[str]]:
    """What the first three columns must say, made from ``CLOSE_CODES``."""
    return [[str(code), entry.name, "yes" if entry.come_back else "no"] for code, entry in CLOSE_CODES.items()]


@pytest.mark.parametrize("page", [DOCS / "close-codes.md", DOCS / "protocol.md"], ids=lambda page: page.name)
def test_close_codes_are_those_of_the_code(page: Path) -> None:
    """Both pages: every code once, in order, with its name and whether to come back, and each says what it means."""
    rows = table(page, "code")
    assert [row[:3] for row in rows] == rows_of_the_code()
    assert all(all(row) and len(row) == len(rows[0]) for row in rows)


def test_exceptions_have_the_codes_that_the_page_says() -> None:
    """Each exception of the table by ``close_code_for``; one that is not there is 4500, as any unknown one."""
    told: dict[str, int] = {}
    for names, code in table(DOCS / "close-codes.md", "exception"):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(code))
    for name, code in told.items():
        kind = getattr(errors, name)
        error: RoomkitError = kind.__new__(kind)
        assert close_code_for(error) == code, name
    special = {kind.__name__ for kind in errors._CLOSE_FOR}
    assert set(told) == special
