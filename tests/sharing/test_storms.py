"""Storms over real instances and a real store, and that what is held against them would notice a lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fence import Acquired, Act, Committed, Logged, Missed, Seen, Watch, read_lines
from fence import violations as fence_violations
from fleet import Store
from people import Caller, End, Person
from proof import violations
from storms import Report, Storm
from support.valkey import ValkeyServer

from tests.sharing import mutants

# Storms.


def storm(seed: int, kind: str, folder: Path, rounds: int, *kinds: str) -> Report:
    """One of so many rounds of faults."""
    store = Store(kind, folder)
    try:
        report = Storm(seed, 60.0, store, rounds=rounds, kinds=kinds, ttl=1.0).run()
    finally:
        store.close()
    print(*report.lines(), sep="\n")
    assert report.wrong == []
    assert report.after
    assert report.forwarded > 0
    assert report.resumed > 0
    return report


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_what_was_told_is_true(seed: int, tmp_path: Path) -> None:
    """Three instances, and faults of every kind: one history for each room, one owner at a time by the store's word,
    and everybody has every event once and in order, through all their connections.
    """
    storm(seed, os.environ.get("ROOMKIT_REDIS_URL") or "one", tmp_path, 4)


def test_on_a_cluster_whose_masters_fall(tmp_path: Path) -> None:
    """One is killed and its replica takes over, one is told to give up its place; an instance is killed as well."""
    kinds = ("store: master killed", "store: failover", "kill")
    report = storm(3, "cluster", tmp_path, 3, *kinds)
    assert set(report.faults) == set(kinds)


# The mutants: python -m tests.sharing.mutants.


def test_every_mutant_can_still_be_made() -> None:
    """The code that each of them breaks is there. To find them all takes too long for every run."""
    for mutant in mutants.MUTANTS:
        assert mutants.edits_of(mutant).edits


@pytest.mark.parametrize(
    "name", ["a resume leaves out the first event that was missed", "delivered before it is stored"]
)
def test_a_mutant_is_found(name: str) -> None:
    """Two that show within seconds."""
    [mutant] = [mutant for mutant in mutants.MUTANTS if mutant.name == name]
    found = mutants.hunt(mutant, "one", 0)
    print(found)
    assert found.found


def test_a_mutant_that_cannot_be_made_is_an_error() -> None:
    """It is not passed over."""
    with pytest.raises(ValueError, match="0 times, not once"):
        mutants.edits_of(mutants.Mutant("none", (("this is nowhere in roomkit", ""),), ()))


# What is held against a storm.


def history() -> list[Act]:
    """Of a room that two instances had, as it should be."""
    return [
        Acquired(100, "one"),
        Committed(100, "one", "e", 0, 1, False),
        Logged(1, ({"seq": 1}, {"seq": 2}), 1),
        Committed(100, "one", "e", 2, 2, False),
        Acquired(105, "two"),
        Committed(105, "two", "e", 2, 3, False),
        Logged(3, ({"seq": 3},), 0),
        Committed(105, "two", "e", 3, 4, False),
    ]


def seen(acts: Sequence[Act]) -> list[Seen]:
    """As it is shown."""
    return [Seen(float(n), 1, act) for n, act in enumerate(acts)]


LOG = [{"seq": 1}, {"seq": 2}, {"seq": 3}]


def test_a_true_history_passes() -> None:
    """Also one in which the store forgot two steps, which the owner restored in one."""
    assert fence_violations("r", seen(history()), LOG) == []
    restored = [*history()[:3], Committed(100, "one", "e", 3, 4, True)]
    assert fence_violations("r", seen(restored), LOG) == []


def test_what_the_store_did_not_get_to_show_may_have_been() -> None:
    """It was killed, or a replica took over: commits are missing, and the lease of another owner. But no fork."""
    missed = [*history()[:3], Missed(), *history()[7:]]
    assert fence_violations("r", seen(missed), LOG) == []
    elsewhere = [*seen(history()[:3]), Seen(9.0, 2, history()[7])]
    assert fence_violations("r", elsewhere, LOG) == []
    assert fence_violations("r", [*seen(missed[:4]), Seen(9.0, 1, Committed(100, "one", "e", 3, 1, False))], LOG)


@pytest.mark.parametrize(
    ("at", "act", "says"),
    [
        (5, Committed(100, "one", "e", 2, 3, False), "when 105 had been given to two"),
        (5, Committed(105, "one", "e", 2, 3, False), "which was given to two"),
        (4, Acquired(100, "two"), "was given to two after 100"),
        (4, Acquired(99, "two"), "was given to two after 100"),
        (5, Committed(105, "two", "e", 2, 2, False), "follows revision 2 by one"),
        (5, Committed(105, "two", "e", 2, 4, False), "follows revision 2 by one"),
        (5, Committed(105, "two", "f", 2, 3, False), "in epoch f, which was e"),
        (5, Committed(105, "two", "e", 1, 3, False), "ends with 1, the one before with 2"),
        (6, Logged(3, ({"seq": 3, "other": 1},), 0), "event 3 is another one at the end"),
        (7, Committed(105, "two", "e", 2, 4, False), "its log has 3 events, the last commit ended with 2"),
    ],
)
def test_a_wrong_history_does_not(at: int, act: Act, says: str) -> None:
    """One act that must not be."""
    acts = history()
    acts[at] = act
    assert any(says in text for text in fence_violations("r", seen(acts), LOG))


def message(seq: int, name: str) -> dict[str, Any]:
    """An event."""
    return {"type": "message", "seq": seq, "data": {"player_id": "amy", "data": {"n": name}}}


TALK = [message(1, "a.1"), message(2, "a.2"), message(3, "a.3")]


def talk() -> tuple[Person, Caller]:
    """Somebody who was told all of that, and somebody who called."""
    end = End()
    person = Person("r", "a", lambda turn: 0, end, 1.0, "seed")
    person.welcomed({"recovered": None, "seq": 0, "epoch": "e"})
    for event in TALK:
        person.hear(event)
    person.acked = {"a.1": 1, "a.2": 2}
    return person, Caller(["r"], lambda turn: 0, end, 1.0)


def test_a_true_story_passes() -> None:
    """Of the third message nobody was told whether it was said."""
    person, caller = talk()
    assert violations([person], [caller], {"r": TALK}, None) == []


def _acked_with_another_seq(person: Person, caller: Caller) -> None:
    person.acked["a.3"] = 2


def _acked_and_missing(person: Person, caller: Caller) -> None:
    person.acked["a.4"] = 4


def _refused_and_said(person: Person, caller: Caller) -> None:
    person.refused["a.3"] = "room_busy"


def _told_twice(person: Person, caller: Caller) -> None:
    person.hear(TALK[2])


def _told_what_is_not_there(person: Person, caller: Caller) -> None:
    person.hear(message(4, "b.1"))


def _not_resumed(person: Person, caller: Caller) -> None:
    person.welcomed({"recovered": False, "seq": 3, "epoch": "e"})


def _closed_oddly(person: Person, caller: Caller) -> None:
    person.codes.add(4501)


def _acked_too_early(person: Person, caller: Caller) -> None:
    person._waiting["a.3"] = 3
    person.take_message({"type": "ack", "id": "a.3", "data": {"seq": 4}})


def _refused_oddly(person: Person, caller: Caller) -> None:
    person._waiting["a.3"] = 3
    person.take_message({"type": "error", "id": "a.3", "data": {"code": "not_seated", "message": "no"}})


def _gap(person: Person, caller: Caller) -> None:
    person.take_message({"type": "gap", "data": {"after": 3, "dropped": 1}})


def _seat_lost(person: Person, caller: Caller) -> None:
    caller.acked["join guest-1"] = "r"


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (_acked_with_another_seq, "a.3 was acknowledged with 2 and is not there"),
        (_acked_and_missing, "a.4 was acknowledged with 4 and is not there"),
        (_refused_and_said, "a.3 was refused with room_busy and is in the log"),
        (_told_twice, "a got 3 after 3"),
        (_told_what_is_not_there, "which is not in the log"),
        (_not_resumed, "a could not resume from 3"),
        (_closed_oddly, "a was closed with 4501"),
        (_acked_too_early, "a.3 was acknowledged with 4 when a had 3"),
        (_refused_oddly, "a.3 was refused with not_seated"),
        (_gap, "a was told something odd"),
        (_seat_lost, "join guest-1 was acknowledged and is not in the log of r"),
    ],
)
def test_a_lie_does_not(lie: Callable[[Person, Caller], None], says: str) -> None:
    """One thing that was told and is not so."""
    person, caller = talk()
    lie(person, caller)
    assert any(says in text for text in violations([person], [caller], {"r": TALK}, None))


def test_a_log_with_something_twice_or_missing_does_not() -> None:
    """Whatever people were told."""
    twice = [*TALK, message(4, "a.1")]
    for log, says in ((twice, "a.1 is 2 times"), (TALK[1:], "is not in order"), (None, "has a hole")):
        person, caller = talk()
        assert any(says in text for text in violations([person], [caller], {"r": log}, None))


def test_the_store_s_word_is_understood(own_server: ValkeyServer) -> None:
    """What a real server shows of one room's life under two owners, with text that has to be escaped, is what was done
    to it; and of other prefixes nothing.
    """
    from roomkit.backends.base import Acted, Commit, Lease, Position
    from roomkit.backends.redis import RedisBackend

    watch = Watch("mine:")
    watch.attach(own_server.port)
    backends = [RedisBackend(own_server.url, prefix=prefix) for prefix in ("mine:", "other:")]
    said = '{"seq":1,"text":"\\"quoted\\" \\\\ \u00e9 \\n"}'.encode()
    for backend in backends:
        [one] = backend.acquire("one", ["r"])
        assert isinstance(one, Lease)
        backend.commit([Commit(one, "r", Position("e", 0), 1, b"{}")])
        backend.commit([Commit(one, "r", Position("e", 1), 2, b"{}", [said], [Acted("x", 1, 1)])])
        backend.release([one], orphan=True)
        [two] = backend.acquire("two", ["r"])
        assert isinstance(two, Lease)
        assert backend.commit([Commit(one, "r", Position("e", 1), 3, b"{}")]) == ["fenced"]
        backend.commit([Commit(two, "r", Position("e", 1), 3, b"{}")])
        if backend is backends[0]:
            tokens = (one.token, two.token)
    watch.catch_up()
    watch.close()
    for backend in backends:
        backend.close()
    [shown] = watch.histories().values()
    assert [act for _, _, act in shown] == [
        Acquired(tokens[0], "one"),
        Committed(tokens[0], "one", "e", 0, 1, False),
        Committed(tokens[0], "one", "e", 1, 2, False),
        Logged(1, ({"seq": 1, "text": '"quoted" \\ \u00e9 \n'},), 1),
        Acquired(tokens[1], "two"),
        Committed(tokens[1], "two", "e", 1, 3, False),
    ]
    assert list(read_lines(1, [b"what is this"], "mine:")) == []
