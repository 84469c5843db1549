"""What a test needs and a user's machine may not have: without it the test is skipped, or fails where none may be.

ROOMKIT_TEST_NO_SKIP says that none may be.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def absent(what: str) -> None:
    """Skip for the lack of something, or fail where nothing may be skipped."""
    reason = f"{what} is not here"
    if os.environ.get("ROOMKIT_TEST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_package(*names: str) -> None:
    """Skip (or fail) unless these packages can be imported."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            absent(f"the package {name}")


def need_program(name: str) -> str:
    """The path of a program, or skip (or fail)."""
    found = shutil.which(name)
    if found is None:
        absent(f"the program {name}")
    assert found is not None
    return found
