"""python -m tests.soak [--seconds 600] [--connections 2000] [--seed 0]: exit status 1 when anything is left over."""

from __future__ import annotations

import argparse
import sys

from .soak import soak


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Churn, and look at what is left.")
    parser.add_argument("--seconds", type=float, default=600, help="of churn (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=2000, help="at one time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report = soak(given.seconds, given.connections, given.seed, print)
    print(report.table())
    for line in report.leaks:
        print(f"LEFT OVER: {line}")
    for line in report.wrong[:20]:
        print(f"WRONG: {line}")
    print("nothing left over" if report.good else "not clean")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
