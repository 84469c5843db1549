"""The design's five disasters, each broken and cured side by side: ``python -m benchmarks.disasters --help``.

The broken ones are small and honest versions of what the design says went wrong; the cured ones are roomkit itself.
Tables go to standard output as Markdown, pictures (with matplotlib: the extra ``bench``) to ``--plots``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import broadcasting, expiry, flags, locking, updates
from benchmarks.picture import draw
from benchmarks.result import Result, fill_marks

DISASTERS: dict[str, Callable[[bool], Result]] = {
    "flags": flags.run,
    "locking": locking.run,
    "broadcasting": broadcasting.run,
    "expiry": expiry.run,
    "updates": updates.run,
}


def run(names: Sequence[str], quick: bool) -> list[Result]:
    """Replay these disasters, one after the other."""
    results = []
    for name in names:
        started = time.perf_counter()
        results.append(DISASTERS[name](quick))
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return results


def fill_page(page: str, results: Sequence[Result]) -> str:
    """The page with each result between its two marks, ``<!-- measured: NAME -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page lacks a result's marks.
    """
    for result in results:
        picture = f"![{result.title}](disasters-{result.name}.png)"
        page = fill_marks(page, result.name, f"{result.markdown()}\n{picture}\n")
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when everything was run and written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disasters", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--only", action="append", choices=DISASTERS, help="this one (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="some seconds in all: enough to see that it works")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write disasters-NAME.png there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put tables and pictures between its marks")
    options = parser.parse_args(arguments)
    results = run(options.only or list(DISASTERS), options.quick)
    how = "quick run" if options.quick else "full run"
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {how}.\n")
    for result in results:
        print(f"## {result.title}\n\n{result.markdown()}")
    if options.plots is not None:
        try:
            for result in results:
                print(f"wrote {draw(result, options.plots)}", file=sys.stderr)
        except ImportError:
            print("No pictures: matplotlib is not installed (pip install 'roomkit-server[bench]').", file=sys.stderr)
    if options.page is not None:
        page = fill_page(options.page.read_text(encoding="utf-8"), results)
        options.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
