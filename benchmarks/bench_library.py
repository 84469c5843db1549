"""The library by the clock: ``python -m pytest benchmarks/bench_library.py`` (the extra ``bench``; two minutes).

What each operation costs, and the promises of ``library.py``, each with the figure that it must keep. Microseconds are
the machine's; what does not depend on it is counted by ``python -m benchmarks.counts``. A test that fails here has
missed what was asked for on this machine, at this moment: run it alone, on an idle machine, before believing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import library
from benchmarks.operations import OPERATIONS, Operation, Stage

_ROUNDS = 300
_ITERATIONS = 1000
_VARIANTS = [(operation, listening) for operation in OPERATIONS for listening in operation.variants]


def _call(ready: Callable[[], object]) -> None:
    ready()


@pytest.mark.parametrize(
    ("operation", "listening"),
    _VARIANTS,
    ids=[f"{operation.name}{', delivered to 4' if listening else ''}" for operation, listening in _VARIANTS],
)
def test_operation(benchmark: Any, operation: Operation, listening: bool) -> None:
    """One operation; delivered: with what its room's thread does for four connections."""
    benchmark.group = "delivered to 4" if listening else "alone"
    stage = Stage(listening)
    try:
        if operation.lasting:
            benchmark.pedantic(operation.ready(stage), rounds=_ROUNDS // 10, iterations=_ITERATIONS, warmup_rounds=1)
        else:
            benchmark.pedantic(_call, setup=lambda: ((operation.ready(stage),), {}), rounds=_ROUNDS, warmup_rounds=3)
    finally:
        stage.close()


def figures_of(benchmark: Any, measure: Callable[..., library.Figures], *arguments: Any) -> library.Figures:
    """What ``measure`` saw, in one run, which also goes into the benchmark's report."""
    benchmark.group = "promises"
    figures: library.Figures = benchmark.pedantic(measure, args=arguments, rounds=1)
    benchmark.extra_info.update({name: round(figure, 4) for name, figure in figures.items()})
    return figures


def test_a_read_costs_a_tenth_of_one_with_the_lock(benchmark: Any) -> None:
    """Reading the state again, against the same under the reader-writer lock."""
    assert figures_of(benchmark, library.read_beside_lock)["ratio"] <= 0.1


def test_reads_go_on_while_a_writer_is_inside(benchmark: Any) -> None:
    """Seven threads read beside a writer that is inside its operation all the time: nearly all reads are made then."""
    figures = figures_of(benchmark, library.beside_a_writer, 1.0)
    assert figures["writes"] > 10
    assert figures["share"] > 0.5
    assert figures["reads"] > 1000 * figures["writes"]


@pytest.mark.parametrize("stay", [0.0, 0.001], ids=["as it is", "1 ms inside"])
def test_no_writer_starves_at_ninety_per_cent_reads(benchmark: Any, stay: float) -> None:
    """Eight threads: each gets its share of writes, and none of a thousand reads waits for a writer."""
    figures = figures_of(benchmark, library.eight_threads, 1.5, stay)
    assert figures["most writes of a thread"] <= 3 * figures["fewest writes of a thread"]
    assert figures["longest wait of a writer, ms"] < 1000
    assert figures["P99.9 of a read, ms"] < 1


@pytest.mark.timeout(300)
def test_a_sweep_costs_what_is_due(benchmark: Any) -> None:
    """A hundred due among 1,000 whole rooms of four, and among 100,000 (700 MB, half a minute to make)."""
    assert figures_of(benchmark, library.sweep_few_and_many)["ratio"] <= 1.2


@pytest.mark.timeout(300)
def test_a_hundred_thousand_rooms_leave_nothing(benchmark: Any) -> None:
    """Made, joined, closed and taken away, one after the other: no room, no thread, no memory by the room."""
    figures = figures_of(benchmark, library.come_and_go)
    assert figures["rooms left"] == figures["threads left"] == 0
    assert figures["objects left"] < 200
    assert figures["blocks left"] < 500
    assert figures["resident bytes left"] < 4e6
