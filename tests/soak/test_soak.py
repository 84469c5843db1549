"""A short soak: what comes, plays, vanishes and misbehaves for some seconds leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

from .soak import Report, soak


def test_nothing_is_left_over(tell: Callable[[str], None]) -> None:
    """No room, timer, connection, thread, file or memory; and nobody saw an event twice or out of order."""
    report = soak(12, 120)
    counts = report.counts
    tell(
        f"soak: {counts['connections']} connections, {counts['events']} events, "
        f"{counts['resumed with a replay']} resumes; "
        f"{report.after['traced bytes'] - report.before['traced bytes']} bytes more at the end"
    )
    assert report.good, f"{report.leaks}\n{report.wrong[:5]}\n{report.table()}"
    for happened in ("connections", "events", "resumed with a replay", "did: vanish", "did: flood", "half handshakes"):
        assert counts[happened], f"no {happened}: a soak of nothing"


def test_a_leak_is_seen() -> None:
    """Something more at the end than at the beginning is told, and what kind of thing it is."""
    before = {
        **dict.fromkeys(("rooms", "room timers", "connections", "websockets", "addresses"), 0),
        **dict.fromkeys(("connection timers", "handlers", "files", "garbage in cycles"), 1),
        "threads": ["MainThread"],
        **dict.fromkeys(("traced bytes", "blocks", "resident bytes"), 10**6),
        "objects": {"Room": 3},
        "kinds in cycles": {},
        "counters": {},
    }
    assert Report(1, {}, [], before, before, before).good
    for name, worse in {
        "rooms": 1,
        "files": 2,
        "threads": ["MainThread", "roomkit-io-1"],
        "traced bytes": 10**6 + 70_000,
        "objects": {"Room": 400},
        "garbage in cycles": 900,
        "resident bytes": 10**6 + 30 * 2**20,
    }.items():
        report = Report(1, {}, [], before, before, {**before, name: worse})
        assert any(leak.startswith(name) for leak in report.leaks), name
        assert not report.good
    fewer = {**before, "threads": [], "resident bytes": 10**5}
    assert Report(1, {}, [], before, fewer, fewer).good
    assert not Report(1, {}, ["an event twice"], before, before, before).good
