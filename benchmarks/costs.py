"""The times of ``bench_library.py`` as tables for ``docs/performance.md``: ``python -m benchmarks.costs --help``.

They come from ``python -m pytest benchmarks/bench_library.py --benchmark-json=FILE.json``; nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.result import Table, fill_marks, markdown_rows

_DELIVERED = ", delivered to 4"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def operations(report: Mapping[str, Any]) -> str:
    """Each operation in microseconds, the fastest round's: alone, and delivered."""
    took = {
        one["name"].partition("[")[2].removesuffix("]"): one["stats"]["min"] * 1e6
        for one in report["benchmarks"]
        if one["name"].startswith("test_operation[")
    }
    rows = [
        [name, *(_figure(took[one]) if one in took else "-" for one in (name, name + _DELIVERED))]
        for name in dict.fromkeys(name.removesuffix(_DELIVERED) for name in took)
    ]
    return markdown_rows(Table("operations", ["operation", "alone, µs", "and delivered to 4, µs"], rows))


def promises(report: Mapping[str, Any]) -> str:
    """Each promise of ``library.py`` with the figures that it was judged by."""
    parts = []
    for one in report["benchmarks"]:
        figures = one.get("extra_info") or {}
        if figures:
            title = one["name"].removeprefix("test_").replace("_", " ").replace("[", " (").replace("]", ")")
            rows = [[name, _figure(figure)] for name, figure in figures.items()]
            parts.append(markdown_rows(Table(title, [title[0].upper() + title[1:], "seen"], rows)))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("report", type=Path, metavar="FILE.json", help="what pytest-benchmark wrote")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the tables between its marks")
    options = parser.parse_args(arguments)
    report = json.loads(options.report.read_text(encoding="utf-8"))
    parts = {"operations": operations(report), "promises": promises(report)}
    if options.page is None:
        print("\n\n".join(parts.values()))
        return 0
    page = options.page.read_text(encoding="utf-8")
    for name, text in parts.items():
        page = fill_marks(page, name, f"{text.strip()}\n")
    options.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
