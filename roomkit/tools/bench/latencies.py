"""Latencies as a histogram that costs an increment each: exact to 0.8 %, whatever their number."""

from __future__ import annotations

_EXACT = 256  # microseconds up to which each has a bucket of its own
_HALF = _EXACT // 2


class Latencies:
    """Durations. ``add`` takes nanoseconds, everything else gives seconds. Thread safety: none."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.longest = 0

    def add(self, nanoseconds: int) -> None:
        """Count one."""
        micros = nanoseconds // 1000
        shift = micros.bit_length() - 8
        # The seven bits behind the first one say which bucket: the higher the number, the wider its buckets.
        bucket = micros if shift <= 0 else shift * _HALF + (micros >> shift)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.total += nanoseconds
        if nanoseconds > self.longest:
            self.longest = nanoseconds

    def percentile(self, share: float) -> float:
        """The smallest duration that ``share`` % of them do not exceed, 0 without any; 100: the longest, exactly."""
        if share >= 100 or not self.count:
            return self.longest / 1e9
        left = max(1, -(-self.count * share // 100))  # rounded up: of 10, 95 % are 10
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return min(_highest(bucket) / 1e6, self.longest / 1e9)
        return self.longest / 1e9

    @property
    def mean(self) -> float:
        """Of all; 0 without any."""
        return self.total / self.count / 1e9 if self.count else 0.0


def _highest(bucket: int) -> int:
    """The end of a bucket, in microseconds."""
    if bucket < _EXACT:
        return bucket + 1
    shift = bucket // _HALF - 1
    return ((bucket - shift * _HALF) + 1) << shift
