"""The picture of a load test: latency by percentile, and deliveries over time. SVG by ourselves, PNG by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from roomkit.tools.bench.result import Result
from roomkit.tools.console import CommandFailed

#: Percentiles of the curve; each nine takes as much room as the one before.
_SHARES = (0.1, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99, 99.999)
_TICKS = (0, 50, 90, 99, 99.9, 99.99, 99.999)
_WIDTH, _HEIGHT = 960, 640
_LEFT, _RIGHT, _TOP, _BETWEEN, _BOTTOM = 76, 24, 56, 84, 52
_INK, _PALE, _BLUE, _ORANGE = "#24292f", "#d0d7de", "#0969da", "#bc4c00"


class Series(NamedTuple):
    """A line: points in the data's own units."""

    name: str
    colour: str
    points: list[tuple[float, float]]


def check_format(path: str) -> None:
    """Refuse a plot that could not be written, before the test has run.

    Raises:
        CommandFailed: neither .svg nor .png, or .png without matplotlib.
    """
    if path.lower().endswith(".png"):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise CommandFailed(
                "--plot FILE.png needs matplotlib: pip install 'roomkit-server[bench]', or name a file.svg", 2
            ) from None
    elif not path.lower().endswith(".svg"):
        raise CommandFailed("--plot must name a file that ends in .svg or .png", 2)


def draw(result: Result, path: str, title: str) -> bytes:
    """The file's content, by the ending of its name."""
    return to_png(result, title) if path.lower().endswith(".png") else to_svg(result, title).encode()


def nines(share: float) -> float:
    """Where a percentile stands on its axis: 0 % at 0, 90 % at 1, 99 % at 2."""
    return -math.log10(1 - share / 100) if share else 0.0


def curves(result: Result) -> list[Series]:
    """Latency in milliseconds by percentile, of deliveries and of answers."""
    found = []
    for name, colour, latencies in (
        ("delivery to each member", _BLUE, result.delivery),
        ("answer to the sender", _ORANGE, result.answer),
    ):
        # A percentile that fewer than one of them is above says nothing that the one before does not.
        shares = [share for share in _SHARES if share < 50 or latencies.count * (1 - share / 100) >= 1]
        points = [(nines(share), latencies.percentile(share) * 1e3) for share in shares]
        if latencies.count:
            last = nines(100 * (1 - 1 / max(2, latencies.count)))
            points.append((max(last, points[-1][0]), latencies.percentile(100) * 1e3))
            found.append(Series(name, colour, points))
    return found


def over_time(result: Result) -> list[Series]:
    """Deliveries in each second, expected and come: steps, since nothing is known of what is within a second."""
    seconds = range(max([*result.expected_by_second, *result.delivered_by_second], default=0) + 1)
    found = []
    for name, colour, counts in (
        ("expected", _ORANGE, result.expected_by_second),
        ("delivered", _BLUE, result.delivered_by_second),
    ):
        points = [(float(end), float(counts[second])) for second in seconds for end in (second, second + 1)]
        found.append(Series(name, colour, points))
    return found


def to_svg(result: Result, title: str) -> str:
    """Two charts, one above the other; light, with every text as text."""
    height = (_HEIGHT - _TOP - _BETWEEN - _BOTTOM) / 2
    latency, flow = curves(result), over_time(result)
    ticks = [(nines(share), f"{share:g} %") for share in _TICKS]
    reach = max([x for series in latency for x, _ in series.points], default=1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="13" fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
        *_chart(_TOP, height, "latency, ms", [tick for tick in ticks if tick[0] <= reach], latency),
        *_chart(_TOP + height + _BETWEEN, height, "deliveries in each second", _second_ticks(flow), flow),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _second_ticks(series: Sequence[Series]) -> list[tuple[float, str]]:
    last = int(series[0].points[-1][0])
    step = max(1, _nice(last / 8))
    return [(float(s), f"{s} s") for s in range(0, last + 1, int(step))]


def _nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 and so on."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)


def _chart(
    top: float, height: float, title: str, ticks: Sequence[tuple[float, str]], series: Sequence[Series]
) -> list[str]:
    width = _WIDTH - _LEFT - _RIGHT
    right = max([x for one in series for x, _ in one.points], default=1.0) or 1.0
    step = _nice(max([y for one in series for _, y in one.points], default=1.0) / 5)
    highest = max([y for one in series for _, y in one.points], default=1.0)
    ceiling = step * max(1, math.ceil(highest / step))

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * x / right, top + height * (1 - y / ceiling)

    parts = [f'<text x="{_LEFT}" y="{top - 10:.1f}">{title}</text>']
    for n in range(round(ceiling / step) + 1):
        y = at(0, n * step)[1]
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{width}" stroke="{_PALE}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{n * step:g}</text>')
    for where, label in ticks:
        x = at(where, 0)[0]
        parts.append(f'<path d="M{x:.1f} {top + height:.1f}v5" stroke="{_INK}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 20:.1f}" text-anchor="middle">{label}</text>')
    for n, one in enumerate(series):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in one.points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{one.colour}" stroke-width="2"/>')
        x = _WIDTH - _RIGHT - 190 * (len(series) - n)
        parts.append(f'<path d="M{x} {top - 14:.1f}h22" stroke="{one.colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 28}" y="{top - 10:.1f}">{escape(one.name)}</text>')
    return parts


def to_png(result: Result, title: str) -> bytes:
    """The same by matplotlib."""
    import io

    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=(_WIDTH / 96, _HEIGHT / 96), dpi=96, layout="constrained")
    figure.suptitle(title)
    above, below = figure.subplots(2, 1)
    latency = curves(result)
    reach = max([x for series in latency for x, _ in series.points], default=1.0)
    for axes, name, found in (
        (above, "latency, ms", latency),
        (below, "deliveries in each second", over_time(result)),
    ):
        for series in found:
            axes.plot(
                [x for x, _ in series.points], [y for _, y in series.points], color=series.colour, label=series.name
            )
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=_PALE)
        if found:
            axes.legend(frameon=False)
    ticks = [share for share in _TICKS if nines(share) <= reach]
    above.set_xticks([nines(share) for share in ticks], [f"{share:g} %" for share in ticks])
    below.set_xlabel("seconds")
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()
