"""A result's panels as one PNG, by matplotlib (the extra ``bench``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.result import Bars, Lines, Result

_COLOURS = ("#bc4c00", "#d4a72c", "#0969da", "#8250df")
_CURED = "#1f6f5c"  # of the last bar or line, which is roomkit's
_PALE = "#d0d7de"


def draw(result: Result, folder: Path) -> Path:
    """Write ``disasters-NAME.png``; returns its path.

    Raises:
        ImportError: matplotlib is not installed. OSError: the folder cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    count = len(result.panels)
    figure = Figure(figsize=(4.8 * max(2, count), 4.0), dpi=100, layout="constrained")
    figure.suptitle(result.title, fontweight="bold")
    for axes, panel in zip(figure.subplots(1, count, squeeze=False)[0], result.panels, strict=True):
        if isinstance(panel, Bars):
            _bars(axes, panel)
        else:
            _lines(axes, panel)
        axes.set_title(panel.title, fontsize=10)
        axes.set_ylabel(panel.unit)
        axes.grid(axis="y", color=_PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.series) > 1:
            axes.legend(frameon=False, fontsize=8)
    path = folder / f"disasters-{result.name}.png"
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def _bars(axes: Any, panel: Bars) -> None:
    width = 0.8 / len(panel.series)
    highest = max(value for values in panel.series.values() for value in values)
    for n, (name, values) in enumerate(panel.series.items()):
        places = [i + (n - (len(panel.series) - 1) / 2) * width for i in range(len(values))]
        alone = [*_COLOURS[: len(values) - 1], _CURED]
        colours = alone if len(panel.series) == 1 else _COLOURS[n % 4]
        drawn = axes.bar(places, values, width * 0.94, color=colours, label=name)
        axes.bar_label(drawn, [_short(value) for value in values], fontsize=8, padding=2)
    axes.set_xticks(range(len(panel.labels)), panel.labels, fontsize=8)
    if panel.log:
        positive = [value for values in panel.series.values() for value in values if value > 0]
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 3, highest * 8)
    else:
        axes.set_ylim(0, highest * 1.25 or 1)


def _lines(axes: Any, panel: Lines) -> None:
    for n, (name, points) in enumerate(panel.series.items()):
        last = n == len(panel.series) - 1
        style = {"color": _CURED, "linestyle": "--"} if last else {"color": _COLOURS[n % 4]}
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=".", **style)
    axes.set_xlabel(panel.x)
    if panel.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
