"""Metrics as Prometheus sees them: names by its conventions, bounded labels, several workers, and the docs."""

from __future__ import annotations

import re
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from support.bench import Bench
from support.fakes import PATIENCE, eventually
from support.needs import need_program
from support.rest import request
from support.serve import ServeProcess
from support.ws import Closed, HandshakeFailed

from roomkit.server.reactor import TURN_BOUNDS

ROOT = Path(__file__).parents[2]


def scrape(address: tuple[str, int]) -> dict[str, Metric]:
    """What Prometheus's own parser makes of a real answer, by family."""
    answer = request(address, "GET", "/metrics")
    assert answer.status == 200
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert families
    return families


def number(families: dict[str, Metric], sample: str, **labels: str) -> float:
    """One sample's value."""
    (found,) = [s.value for f in families.values() for s in f.samples if (s.name, s.labels) == (sample, labels)]
    return found


def test_names_and_types_follow_prometheus_conventions(bench: Bench) -> None:
    """Counters end in _total, nothing else does; units are base units; every family has a help that ends in no period
    and says more than its name."""
    families = scrape(bench.serve().listener.address)
    for family in families.values():
        assert re.fullmatch("[a-z][a-z0-9_]*[a-z0-9]", family.name), family.name
        assert family.documentation, family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
        if family.name.startswith("roomkit_"):
            assert family.type in ("counter", "gauge", "histogram"), family.name
            assert not family.documentation.endswith("."), family.name
            assert not re.search("_(ms|millis|kb|mb|minutes|percent|count|sum)$", family.name), family.name


def test_promtool_finds_nothing_to_say(bench: Bench) -> None:
    """Prometheus's own linter, on a real scrape."""
    promtool = need_program("promtool")
    answer = request(bench.serve().listener.address, "GET", "/metrics")
    done = subprocess.run([promtool, "check", "metrics"], input=answer.body, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_labels_are_bounded_whatever_clients_send(bench: Bench) -> None:
    """50 rooms with players of odd names, who send unknown types, operations, codes and paths: no label value is
    theirs, and there are as many series as before, but for what has a name in the code."""
    server = bench.serve(max_connections_per_address=0)
    address = server.listener.address
    before = series(address)
    for n in range(50):
        room, player = f"zz-room-{n}", f"zz-player-{n}"
        request(address, "POST", "/api/rooms", {"id": room, "metadata": {"zz": n}})
        request(address, "POST", "/api/rooms", {"id": room})
        request(address, "POST", "/api/rooms", {f"zz-{n}": n})
        amy = bench.join(server, room, player, name=f"zz {n}")
        for odd in (f"zz-type-{n}", "perform", "kick", "message"):
            amy.ask(odd, {"operation": f"zz-operation-{n}"})
        amy.ask("perform", {"operation": f"zz-operation-{n}", "data": {}})
        amy.do("message", {"zz": n}, key=f"zz-key-{n}")
        amy.do("update_settings", {"settings": {f"zz-{n}": n}})
        request(address, "GET", f"/zz-{n}")
        request(address, f"ZZ{n}", "/")
        with pytest.raises(Closed):
            bench.connect(server, f"zz-nowhere-{n}").recv()
        with pytest.raises(HandshakeFailed):
            bench.connect(server, room, player, headers=[("Origin", f"https://zz-{n}.example")])
        amy.do("leave") if n % 2 else amy.cut()
    after = series(address)
    assert [labels for labels in after if "zz" in str(labels).lower()] == []
    new = after - before
    assert {name for name, _ in new} <= {"roomkit_dropped_events_total", "python_info"}, new
    per_metric: dict[str, int] = defaultdict(int)
    for name, _ in after:
        per_metric[name] += 1
    assert max(per_metric.values()) < 40, per_metric


def series(address: tuple[str, int]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every sample's name and labels."""
    return {(s.name, tuple(sorted(s.labels.items()))) for f in scrape(address).values() for s in f.samples}


def test_refused_joins_and_limits_on_rooms_are_counted(bench: Bench) -> None:
    """By the close code's name, whether the room or the server refused; and the limit that nothing else counts."""
    server = bench.serve(max_rooms=1)
    address = server.listener.address
    assert request(address, "POST", "/api/rooms", {"id": "room", "max_players": 1}).status == 201
    assert request(address, "POST", "/api/rooms", {"id": "more"}).status == 429
    bench.join(server, "room", "amy")
    assert bench.connect(server, "room", "bob").wait_closed() == 4505
    assert bench.connect(server, "room", "amy").wait_closed() == 4501
    assert bench.connect(server, "nowhere", "amy").wait_closed() == 4504
    families = scrape(address)
    for code, count in {"room_full": 1, "bad_token": 1, "room_not_found": 1, "kicked": 0}.items():
        assert number(families, "roomkit_refused_joins_total", code=code) == count, code
    assert number(families, "roomkit_limited_total", limit="rooms") == 1
    assert number(families, "roomkit_limit", limit="rooms") == 1
    assert number(families, "roomkit_limit", limit="connections") == 10_000


def test_turns_of_the_io_thread_are_measured(bench: Bench) -> None:
    """A turn that takes 0.12 s is counted in the bucket up to 0.25 s and not below; the sum grows by it."""
    server = bench.serve()
    before = scrape(server.listener.address)
    assert server.listener.reactors[0].run_and_wait(lambda: time.sleep(0.12), PATIENCE)
    after = scrape(server.listener.address)

    def grown(sample: str, **labels: str) -> float:
        return number(after, sample, **labels) - number(before, sample, **labels)

    total = grown("roomkit_io_turn_seconds_count")
    assert grown("roomkit_io_turn_seconds_bucket", le="+Inf") == total > 0
    assert grown("roomkit_io_turn_seconds_bucket", le="0.1") == total - 1
    assert 0.12 < grown("roomkit_io_turn_seconds_sum") < 1.0
    bounds = [s.labels["le"] for s in after["roomkit_io_turn_seconds"].samples if "le" in s.labels]
    assert [float(bound) for bound in bounds] == [*TURN_BOUNDS, float("inf")]


def test_workers_give_the_same_metrics_with_a_label() -> None:
    """`--workers 2`: the same families and types, each sample once for each worker, histogram included."""
    process = ServeProcess("--workers", "2")
    single = ServeProcess()
    try:
        alone, both = scrape(("127.0.0.1", single.port)), scrape(("127.0.0.1", process.port))
        assert {f.name: f.type for f in alone.values()} == {f.name: f.type for f in both.values()}
        for name, family in alone.items():
            expected = {(s.name, *sorted(s.labels.items())) for s in family.samples}
            for worker in ("0", "1"):
                mine = [s for s in both[name].samples if s.labels["worker"] == worker]
                found = {(s.name, *sorted((k, v) for k, v in s.labels.items() if k != "worker")) for s in mine}
                assert found == expected, name
    finally:
        assert (process.stop(), single.stop()) == (0, 0)


def test_the_table_in_the_docs_is_that_of_the_code(bench: Bench) -> None:
    """docs/operating.md lists every metric of a real scrape, with type, labels and meaning, and no other."""
    rows = []
    for family in scrape(bench.serve().listener.address).values():
        if family.name.startswith("roomkit_"):
            labels = sorted({label for s in family.samples for label in s.labels} - {"le"})
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |")
    page = (ROOT / "docs" / "operating.md").read_text()
    table = [line for line in page.splitlines() if re.match(r"\| `roomkit_", line)]
    assert table == sorted(rows), "out of date; the table should be:\n" + "\n".join(sorted(rows))


def test_counters_of_a_drained_server_stay(bench: Bench) -> None:
    """A scrape while the server drains still answers, with ready 0."""
    server = bench.serve()
    server.draining = True
    assert number(scrape(server.listener.address), "roomkit_ready") == 0
    eventually(lambda: server.listener.connection_count == 0)
