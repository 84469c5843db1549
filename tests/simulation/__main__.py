"""``python -m tests.simulation``: run many seeds, or one with its trace."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter

from .knobs import SCENARIOS
from .patch import patched
from .scheduler import GRAINS
from .world import simulate


def explain(seed: int, scenario: str, grain: str | None, lines: int) -> None:
    """Run a seed again, and print what it did, the last ``lines`` lines of its trace, and what was found."""
    scheduler, world = simulate(seed, scenario, grain=grain, record=True)
    print(f"seed {seed}, {world.knobs}")
    print(f"schedule: {scheduler.strategy}; {scheduler.step} steps, {scheduler.switches} switches")
    print(f"outcomes: {dict(world.outcomes)}; {world.operations} operations, {world.deliveries} deliveries")
    shown = scheduler.trace[-lines:] if lines else scheduler.trace
    if len(shown) < len(scheduler.trace):
        print(f"... {len(scheduler.trace) - len(shown)} lines; --trace 0 shows them all")
    width = max((len(row[2]) for row in shown), default=0)
    for step, now, thread, what, which in shown:
        print(f"{step:7} {now:11.6f} {thread:{width}} {what} {which}")
    print(scheduler.finding or "nothing was found")


def digest(seed: int, scenario: str = "any", grain: str | None = None) -> str:
    """A hash of everything that a seed does."""
    scheduler, _ = simulate(seed, scenario, grain=grain, record=True)
    return hashlib.sha256(repr((scheduler.trace, str(scheduler.finding))).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Exit 1 when something was found."""
    parser = argparse.ArgumentParser("python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and print its trace")
    parser.add_argument("--seeds", default="0:1000", metavar="A:B", help="run these (default 0:1000)")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--scenario", default="any", choices=("any", *SCENARIOS))
    parser.add_argument("--grain", choices=GRAINS, help="where threads may change (default: the seed picks)")
    parser.add_argument("--trace", type=int, default=200, metavar="N", help="so many lines of a trace; 0: all")
    parser.add_argument("--digest", action="store_true", help="print a hash of the whole trace of --seed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that is found")
    options = parser.parse_args(arguments)
    with patched():
        if options.digest:
            print(digest(options.seed, options.scenario, options.grain))
            return 0
        if options.seed is not None:
            explain(options.seed, options.scenario, options.grain, options.trace)
            return 0
        first, last = (int(part) for part in options.seeds.split(":"))
        began = time.perf_counter()
        found: Counter[str] = Counter()
        steps = switches = runs = 0
        for seed in range(first, last):
            if options.seconds and time.perf_counter() - began > options.seconds:
                break
            scheduler, _ = simulate(seed, options.scenario, grain=options.grain)
            runs, steps, switches = runs + 1, steps + scheduler.step, switches + scheduler.switches
            if scheduler.finding is not None:
                found[scheduler.finding.kind] += 1
                if not options.keep_going:
                    explain(seed, options.scenario, options.grain, options.trace)
                    print(f"again: python -m tests.simulation --seed {seed} --scenario {options.scenario}")
                    break
                print(f"seed {seed}: {scheduler.finding}")
        seconds = time.perf_counter() - began
    each = 1000 * seconds / max(1, runs)
    print(f"{runs} runs in {seconds:.1f} s, {each:.1f} ms each; {steps} steps, {switches} switches")
    print(f"found: {dict(found) or 'nothing'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
