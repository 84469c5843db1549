"""What a load test found, as numbers. ``report`` puts them into words, ``plot`` into a picture."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

from roomkit._version import __version__
from roomkit.tools.bench.latencies import Latencies
from roomkit.tools.bench.plan import Plan

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
#: Past one of these the generator itself was too slow for its numbers to be the server's.
BUSY, LATE = 0.85, 0.020


class Result:
    """Filled while the test runs. Times are seconds; ``*_at`` by the engine's clock, in nanoseconds.

    Attributes:
        sent_at, members, arrived: by message: when it was sent, to how many it should go, and to how many it came.
        connect: from the TCP connection's begin to the welcome. delivery: from a send to each member's receipt.
        lag: how late the generator was with its own sends.
        refused: messages by error code. lost: connections that ended before they should, by reason.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.connect = Latencies()
        self.delivery = Latencies()
        self.answer = Latencies()
        self.lag = Latencies()
        self.sent_at = array("q")
        self.members = array("H")
        self.arrived = array("H")
        self.sent = 0
        self.answered = 0
        self.refused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.dropped = 0
        self.duplicates = 0
        self.expected = 0
        self.delivered = 0
        self.expected_by_second: Counter[int] = Counter()
        self.delivered_by_second: Counter[int] = Counter()
        self.load_seconds = 0.0
        self.last_arrival = 0.0  # seconds after the load began
        self.arrived_in_load = 0
        self.cpu_seconds = 0.0
        self.rooms_left = 0
        self.interrupted = False

    @property
    def missing(self) -> int:
        """Deliveries that never came."""
        return self.expected - self.delivered

    @property
    def busy(self) -> float:
        """The share of one core that the generator took while it sent."""
        return self.cpu_seconds / self.load_seconds if self.load_seconds else 0.0

    @property
    def rate(self) -> float:
        """Deliveries a second, from the first send to the last receipt."""
        return self.delivered / max(self.load_seconds, self.last_arrival) if self.load_seconds else 0.0

    @property
    def ceiling(self) -> float:
        """So many deliveries a second this generator could take on this machine, by what they cost it; 0: unknown,
        since it had too little to do for that to be told.
        """
        return self.arrived_in_load / self.cpu_seconds if self.busy > 0.1 else 0.0

    @property
    def generator_limited(self) -> bool:
        """Whether the numbers tell more of the generator than of the server."""
        return self.busy > BUSY or self.lag.percentile(99) > LATE

    @property
    def flawless(self) -> bool:
        """Everything was carried out and came, once."""
        return not (self.missing or self.duplicates or self.refused or self.lost or self.dropped)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values; latencies in milliseconds."""
        plan = self.plan
        seconds = range(max([*self.expected_by_second, *self.delivered_by_second], default=-1) + 1)
        return {
            "roomkit": __version__,
            "plan": {name: getattr(plan, name) for name in plan.__dataclass_fields__},
            "interrupted": self.interrupted,
            "seconds": round(self.load_seconds, 3),
            "sent": self.sent,
            "answered": self.answered,
            "expected": self.expected,
            "delivered": self.delivered,
            "missing": self.missing,
            "duplicates": self.duplicates,
            "dropped": self.dropped,
            "deliveries_per_second": round(self.rate, 1),
            "delivery_ms": _summary(self.delivery),
            "answer_ms": _summary(self.answer),
            "connect_ms": _summary(self.connect),
            "refused": dict(self.refused),
            "lost_connections": dict(self.lost),
            "rooms_left": self.rooms_left,
            "generator": {
                "limited": self.generator_limited,
                "busy": round(self.busy, 3),
                "ceiling": round(self.ceiling),
                "lag_ms": _summary(self.lag),
            },
            "per_second": {
                "expected": [self.expected_by_second[second] for second in seconds],
                "delivered": [self.delivered_by_second[second] for second in seconds],
            },
        }


def _summary(latencies: Latencies) -> dict[str, Any]:
    found: dict[str, Any] = {"count": latencies.count, "mean": round(latencies.mean * 1e3, 3)}
    for share in PERCENTILES:
        found["max" if share == 100 else f"p{share:g}"] = round(latencies.percentile(share) * 1e3, 3)
    return found
