"""The five disasters replayed in a hurry: what is counted is wrong where it is broken, and right in roomkit.

Times are left out: they belong to the machine. One run serves all the tests.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from support.fakes import eventually
from support.needs import need_package

from benchmarks import disasters
from benchmarks.picture import draw
from benchmarks.result import Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "disasters.md"


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """A quick run of all five, which leaves no thread behind."""
    before = set(threading.enumerate())
    found = {result.name: result for result in disasters.run(list(disasters.DISASTERS), quick=True)}
    eventually(lambda: not set(threading.enumerate()) - before)
    return found


def test_flags_contradict_each_other_and_a_table_cannot(results: dict[str, Result]) -> None:
    """The forgotten flag: contradictory rooms, games that start twice or take strangers. None with the table, in which
    as many games are played.
    """
    figures = results["flags"].figures
    assert figures["contradictory: six flags"] > 0
    assert figures["joined_playing: six flags"] > 0
    assert figures["lost_game: six flags, reset on join"] > 0
    for what in ("contradictory", "steps", "started_twice", "joined_playing", "lost_game"):
        assert figures[f"{what}: one table (roomkit)"] == 0, what
    assert figures["games: one table (roomkit)"] > 0


def test_rooms_without_a_lock_are_over_full(results: dict[str, Result]) -> None:
    """With a wait between the look and the taking; roomkit, with a wait in every operation, never has one too many."""
    figures = results["locking"].figures
    assert figures["over-full: no lock, a wait between look and taking"] > 0
    assert figures["over-full: roomkit, a wait in every operation"] == 0
    assert figures["reads/s: snapshots (roomkit)"] > 0


def test_a_thread_per_send_overtakes_and_the_queue_does_not(results: dict[str, Result]) -> None:
    """Events come after later ones, and threads pile up for the far player; the queue keeps the order without one."""
    figures = results["broadcasting"].figures
    assert figures["out_of_order: a thread per send"] > 0
    assert figures["threads: a thread per send"] > 10
    assert figures["out_of_order: sending under the lock"] == 0
    assert figures["out_of_order: event queue (roomkit)"] == 0
    assert figures["threads: event queue (roomkit)"] == 0
    assert (figures["dropped: event queue (roomkit)"], figures["still_there: event queue (roomkit)"]) == (0, 4)
    # No matter of the machine but of the design: who sends under the lock waits for the far player's 200 ms.
    assert figures["p99: sending under the lock"] > 150 > figures["p50: event queue (roomkit)"]


def test_deleting_at_once_is_wrong_and_never_deleting_grows(results: dict[str, Result]) -> None:
    """Thirty days: who is back in time finds no room, or rooms pile up day by day; with timeouts neither."""
    figures = results["expiry"].figures
    assert figures["wrongly deleted: delete at once"] > 0
    assert figures["wrongly deleted: never delete"] == figures["wrongly deleted: timeout (roomkit)"] == 0
    never = [figures[f"alive on day {day}: never delete"] for day in range(1, 31)]
    assert never == sorted(never)
    assert never[29] > 1.4 * never[14] > 1.4 * 1.4 * never[4]  # without an end
    assert figures["most alive: timeout (roomkit)"] <= 3
    assert figures["most alive: timeout (roomkit)"] < never[29] / 10


def test_a_scan_visits_all_and_the_heap_what_is_due(results: dict[str, Result]) -> None:
    """Of a thousand whole rooms and of ten thousand deadlines, a hundred are due."""
    figures = results["expiry"].figures
    for name, rooms in (("1,000 whole rooms", 1000), ("10,000 deadlines", 10_000)):
        assert (figures[f"scan_visits: {name}"], figures[f"heap_visits: {name}"]) == (rooms, 100)


def test_requests_and_bytes_of_the_four_transports(results: dict[str, Result]) -> None:
    """Polling asks some ten times for each update, long polling once, the streams never; a frame is the smallest."""
    figures = results["updates"].figures
    polling, long_polling, stream, websocket = "polling", "long polling", "server-sent events", "WebSocket (roomkit)"
    requests = [figures[f"requests: {name}"] for name in (polling, long_polling, stream, websocket)]
    assert requests[0] > 5 > 1.1 > requests[1] > 0.4
    assert requests[2:] == [0, 0]
    sizes = [figures[f"bytes: {name}"] for name in (polling, long_polling, stream, websocket)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_every_result_is_a_table_and_a_picture(results: dict[str, Result], tmp_path: Path) -> None:
    """Markdown with as many cells as headers, and a PNG."""
    need_package("matplotlib")
    for result in results.values():
        for table in result.tables:
            assert all(len(row) == len(table.headers) for row in table.rows), table.title
        assert draw(result, tmp_path).read_bytes().startswith(b"\x89PNG\r\n")


def test_the_page_has_a_place_for_each(results: dict[str, Result]) -> None:
    """Tables and pictures go between their marks, once, and the rest of the page stays."""
    page = PAGE.read_text(encoding="utf-8")
    filled = disasters.fill_page(page, list(results.values()))
    assert disasters.fill_page(filled, list(results.values())) == filled
    for result in results.values():
        assert result.markdown() in filled
        assert f"](disasters-{result.name}.png)" in page, "the page shows no picture of a run"
        assert (PAGE.parent / f"disasters-{result.name}.png").is_file()
    assert filled.startswith(page[:2000])
    with pytest.raises(ValueError, match="no marks for 'flags'"):
        disasters.fill_page("# nothing\n", [results["flags"]])


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints the table, says what is missing for the picture, and that is no failure."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert disasters.main(["--quick", "--only", "flags", "--plots", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "| one table (roomkit) | 150 | 0 |" in said.out
    assert "No pictures: matplotlib is not installed" in said.err
    assert not list(tmp_path.iterdir())
