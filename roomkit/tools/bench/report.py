"""A load test in words: the line of progress while it runs, and the summary at the end."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from roomkit.tools.bench.latencies import Latencies
from roomkit.tools.bench.plan import Plan
from roomkit.tools.bench.result import PERCENTILES, Result

_PLAIN_EVERY = 2.0  # seconds between two lines where nothing can be drawn over


class Progress:
    """One line that is drawn again and again on a terminal; elsewhere a line now and then. On standard error."""

    def __init__(self, plan: Plan, stream: TextIO | None = None) -> None:
        self._plan = plan
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._drawn = 0
        self._phase = ""
        self._said_at = 0.0

    def __call__(self, phase: str, result: Result) -> None:
        """Draw."""
        if not self._terminal:
            now = time.monotonic()
            if phase == self._phase and now - self._said_at < _PLAIN_EVERY:
                return
            self._phase, self._said_at = phase, now
            self._stream.write(self._line(phase, result) + "\n")
        else:
            line = self._line(phase, result)
            self._stream.write("\r" + line.ljust(self._drawn))
            self._drawn = len(line)
        self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._terminal and self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0

    def _line(self, phase: str, result: Result) -> str:
        plan = self._plan
        if phase == "rooms":
            return f"making {plan.rooms} rooms"
        if phase == "connecting":
            return f"connecting {result.connect.count} of {plan.connections} players"
        parts = [
            f"{phase} {_bar(len(result.sent_at) / plan.messages)} {100 * len(result.sent_at) // plan.messages:3} %",
            f"sent {result.sent}",
            f"delivered {result.delivery.count} of {result.expected}",
            f"P50 {_ms(result.delivery.percentile(50))}",
            f"P99 {_ms(result.delivery.percentile(99))}",
        ]
        if failed := sum(result.refused.values()) + sum(result.lost.values()):
            parts.append(f"errors {failed}")
        return "  ".join(parts)


def summary(result: Result, address: str) -> str:
    """What was found, ending with a newline."""
    plan = result.plan
    lines = [
        f"{address}: {plan.rooms} rooms of {plan.players}, {plan.rate:g} messages a second in each"
        f" ({plan.operation}, {plan.size} bytes of padding), {result.load_seconds:.1f} s"
        + (", interrupted" if result.interrupted else ""),
        "",
        f"  sent        {result.sent:>9}   {result.sent / max(result.load_seconds, 1e-9):>9.0f} a second",
        f"  delivered   {result.delivered:>9}   {result.rate:>9.0f} a second   {_share(result)} of {result.expected}",
        "",
        "  " + " " * 12 + "".join(f"{'max' if p == 100 else f'P{p:g}':>11}" for p in PERCENTILES),
        _row("delivery", result.delivery),
        _row("answer", result.answer),
        _row("connect", result.connect),
        "",
    ]
    for name, count in (
        ("missing deliveries", result.missing),
        ("deliveries too many", result.duplicates),
        ("dropped by rooms' queues (told by a gap)", result.dropped),
        ("messages without an answer", result.sent - result.answered - sum(result.refused.values())),
    ):
        if count:
            lines.append(f"  {name}: {count}")
    lines += [f"  refused: {count} x {code}{_hint(code, plan)}" for code, count in result.refused.most_common()]
    lines += [f"  lost connections: {count} x {reason}" for reason, count in result.lost.most_common()]
    if result.rooms_left:
        lines.append(f"  {result.rooms_left} rooms could not be closed; they expire by themselves")
    if result.flawless:
        lines.append("  every message was carried out and delivered once to every member")
    lines.append(
        f"  generator: {100 * result.busy:.0f} % of one core{_ceiling(result)}; its sends were late by "
        f"{_ms(result.lag.percentile(99))} (P99)"
    )
    if result.generator_limited:
        lines.append(
            "  WARNING: the generator was the bottleneck; these are its numbers and not the server's. "
            "Ask for less, or run several on other machines."
        )
    return "\n".join(lines) + "\n"


def _row(name: str, latencies: Latencies) -> str:
    return f"  {name:<12}" + "".join(f"{_ms(latencies.percentile(p)):>11}" for p in PERCENTILES)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _ceiling(result: Result) -> str:
    if not result.ceiling:
        return ""
    return f", so at most about {result.ceiling:.0f} deliveries a second on this machine"


def _share(result: Result) -> str:
    """Never 100 % when something is missing."""
    if not result.expected:
        return "0 %"
    share = 100 * result.delivered / result.expected
    return "100 %" if not result.missing else f"{min(share, 99.999):.3f} %"


def _bar(share: float) -> str:
    filled = int(20 * min(1.0, share))
    return "[" + "#" * filled + "." * (20 - filled) + "]"


def _hint(code: str, plan: Plan) -> str:
    if code == "limit_exceeded":
        return (
            f": each player sends {plan.rate / plan.players:g} a second; start the server with a higher --message-rate"
            " (0 turns it off)"
        )
    return ""
