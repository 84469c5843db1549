"""A few of the mutants; ``python -m tests.simulation.mutants`` runs them all."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, Edit, check, hunt_in_process, patch

QUICK = ("write lock not taken", "reservation released twice", "drop not counted", "answers written before the events")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_fits_the_code(mutant: object) -> None:
    """Each text that is to be broken stands there exactly once."""
    check(mutant)  # type: ignore[arg-type]


def test_a_text_that_is_gone_is_an_error() -> None:
    """So that the list cannot rot."""
    with pytest.raises(ValueError, match="0 times, not once"):
        patch("a = 1\n", (Edit("x.py", "b = 1", "b = 2"),))
    with pytest.raises(ValueError, match="2 times, not once"):
        patch("a = 1\na = 1\n", (Edit("x.py", "a = 1", "a = 2"),))


@pytest.mark.parametrize("name", QUICK)
def test_the_simulation_finds_what_is_broken(name: str) -> None:
    """A handful of seeds is enough for these."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    killed, _ = hunt_in_process(mutant, 20)
    assert killed.startswith("seed "), f"{name} survived"
