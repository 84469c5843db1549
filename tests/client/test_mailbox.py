"""The bounded queue before whoever listens to a client."""

from __future__ import annotations

import threading

import pytest
from support.fakes import PATIENCE

from roomkit import Event
from roomkit.client._listeners import Listeners
from roomkit.client._mailbox import Letter, Mailbox


def letter(seq: int, kind: str = "message") -> Letter:
    return Letter("event", Event(kind, seq, "", {}), None)


def taken(mailbox: Mailbox) -> list[object]:
    """What is there: seqs, and the data of what tells of a loss."""
    found: list[object] = []
    while (got := mailbox.take()) is not None:
        found.append(got.payload.seq or got.payload.data)
    return found


def test_what_had_no_place_is_told_before_the_next_that_has() -> None:
    """Where it was, not at the end; once for each run of losses; by type."""
    mailbox = Mailbox(2)
    assert [mailbox.put(letter(seq)) for seq in (1, 2, 3, 4)] == [0, 0, 1, 2]
    assert mailbox.take() == letter(1)
    assert mailbox.put(letter(5, "player_ready")) == 0
    assert mailbox.put(letter(6, "player_ready")) == 1
    assert taken(mailbox) == [
        2,
        {"after": 2, "dropped": 2, "types": {"message": 2}},
        5,
        {"after": 5, "dropped": 1, "types": {"player_ready": 1}},
    ]
    assert mailbox.dropped == 3


def test_the_last_letter_has_a_place_in_any_case() -> None:
    """And after the end nothing is taken in."""
    mailbox = Mailbox(1)
    mailbox.put(letter(1))
    mailbox.put(letter(2))
    assert mailbox.put(letter(3), always=True) == 0
    mailbox.end()
    assert mailbox.put(letter(4), always=True) == 0
    assert not mailbox.ended
    assert taken(mailbox) == [1, {"after": 1, "dropped": 1, "types": {"message": 1}}, 3]
    assert mailbox.ended
    assert mailbox.take(None) is None


def test_who_waits_is_woken_by_a_letter_and_by_the_end() -> None:
    """Without either it waits for the time that it said."""
    mailbox = Mailbox(1, frozenset({"event"}))
    assert mailbox.take(0.001) is None
    mailbox.put(Letter("state", None, None))
    assert mailbox.take() is None
    for wake in (lambda: mailbox.put(letter(1)), mailbox.end):
        got: list[Letter | None] = []
        thread = threading.Thread(target=lambda got=got: got.append(mailbox.take(PATIENCE)), daemon=True)
        thread.start()
        wake()
        thread.join(PATIENCE)
        assert len(got) == 1


def test_without_a_thread_for_the_callbacks_they_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client goes on; the next letter tries again, and nothing is lost."""
    heard: list[int] = []
    listeners = Listeners("roomkit-test", 10, lambda kind: None)
    listeners.on("event", lambda event: heard.append(event.seq))

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        listeners.tell(letter(1), last=False)
    assert "no thread for the callbacks" in caplog.text
    listeners.tell(letter(2), last=True)
    assert listeners.stop(PATIENCE)
    assert heard == [1, 2]


def test_the_end_is_told_however_full_it_is() -> None:
    """A callback that stands in the way of all others does not keep the end of the connection from being told."""
    heard: list[object] = []
    standing, gate = threading.Event(), threading.Event()
    listeners = Listeners("roomkit-test", 1, lambda kind: None)
    listeners.on("event", lambda event: (standing.set(), gate.wait(PATIENCE)))
    listeners.on("connection", heard.append)
    listeners.tell(letter(1), last=False)
    assert standing.wait(PATIENCE)
    for seq in (2, 3):
        listeners.tell(letter(seq), last=False)
    listeners.tell(Letter("connection", "the end", None), last=True)
    gate.set()
    assert listeners.stop(PATIENCE)
    assert (heard, listeners.dropped) == (["the end"], 1)
