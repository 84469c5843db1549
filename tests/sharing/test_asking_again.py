"""What was asked of a room's owner while the store fails: asked again, given up in time, or not wanted any more."""

from __future__ import annotations

import pytest
from support.fakes import Wire, eventually
from support.following import Mail, copy_of, following_of, node_of, pair, wake
from support.unsteady import TTL, Instances, answers_of, steady

from roomkit import BackendUnavailable
from roomkit.sharing.letters import Ask


def test_what_could_not_be_sent_is_sent_with_the_next_look(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection to the store broke, and that was noticed by what went over it: nobody waits a second for that."""
    _, two, room, copy = pair(instances)
    copy.join("amy", Wire())
    inner = steady(two).inner
    send = inner.send
    lost: list[object] = []

    def fail_once(bodies: object) -> object:
        if not lost:
            lost.append(bodies)
            raise BackendUnavailable("the store did not answer: the connection was closed")
        return send(bodies)

    monkeypatch.setattr(inner, "send", fail_once)
    copy.send_message("amy", {"n": 1})  # while the clock stands still
    assert lost
    assert room.get_recent_events(1)[0].data["data"] == {"n": 1}


def test_what_is_asked_is_given_up_in_time_though_the_store_does_not_answer(instances: Instances) -> None:
    """Nobody knows then whether it was carried out."""
    _, two, _, copy = pair(instances)
    copy.join("amy", Wire())
    steady(two).down = True
    refused: list[Exception] = []
    answers = answers_of(lambda: copy.send_message("amy", {"n": 1}))
    eventually(lambda: copy_of(copy).waiting)
    instances.clock.advance(following_of(two).patience + TTL)
    wake(two)
    eventually(lambda: answers)
    refused += answers
    assert isinstance(refused[0], BackendUnavailable)
    assert not copy_of(copy).waiting


def test_who_is_gone_before_being_let_in_is_not_asked_for_again(instances: Instances) -> None:
    """Carried out late, it would take the seat from the connection with which the player came back elsewhere."""
    one, two, room, copy = pair(instances)
    mail = Mail(two)
    mail.keep = lambda letter: not isinstance(letter, Ask)  # the first one is lost on the way
    gone, back = Wire(), Wire()
    copy.submit_join("amy", gone, lambda error: None, token="t" * 22)
    eventually(lambda: mail.lost)
    copy.remove_connection("amy", gone)
    assert not copy_of(copy).waiting
    mail.keep = lambda letter: True
    room.join("amy", back, token="t" * 22)
    node_of(two).following.look_in(0.0)
    instances.clock.advance(TTL / 3)
    wake(one, two)
    copy.get_state()
    room.send_message("amy", {"n": 1})
    back.wait(lambda wire: any(event["type"] == "message" for event in wire.events))
    assert not mail.of(Ask)
    assert not back.closes
