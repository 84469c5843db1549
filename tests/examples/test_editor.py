"""examples/editor: what people write at once, with and without a network, is the same text for all and the server."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if not os.environ.get("ROOMKIT_TEST_NO_SKIP"):
    pytest.importorskip("pycrdt", reason="pycrdt is not installed")

import pycrdt
from support.fakes import PATIENCE
from support.needs import absent, need_program
from support.pages import NETWORK_LOST, Visitor, Visitors, example
from support.proxy import Proxy
from support.serve import ServeProcess
from support.ws import WsClient

from roomkit import Room, RoomManager

EDITOR = Path(__file__).parents[2] / "examples" / "editor"

_spec = importlib.util.spec_from_file_location("editor_example", EDITOR / "server.py")
assert _spec is not None
assert _spec.loader is not None
editor: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(editor)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Writer:
    """Somebody with a document of their own, without a browser."""

    def __init__(self) -> None:
        self.doc: Any = pycrdt.Doc()
        self.text: Any = self.doc.get("text", type=pycrdt.Text)

    def write(self, text: str) -> str:
        """Append; the change as it is sent."""
        before = self.doc.get_state()
        self.text += text
        return encode(self.doc.get_update(before))

    @property
    def vector(self) -> str:
        return encode(self.doc.get_state())

    def take(self, answer: dict[str, str]) -> str:
        """Apply an answer of the server's; the text then."""
        self.doc.apply_update(base64.b64decode(answer["update"]))
        return str(self.text)


# The server's copy, without a network.


@pytest.fixture
def room() -> Iterator[Room]:
    with RoomManager(editor.ROOM.replace(history_size=10), lifecycle=editor.EDITOR) as rooms:
        made = rooms.create_room("r")
        made.add_player("amy")
        yield made


def test_the_copy_contains_what_was_said_before_the_question(room: Room) -> None:
    """A change that was sent before the exchange is in the answer, however slow the copy's subscriber is: the
    newcomer's welcome did not bring it, so nothing else will.
    """
    document, amy = editor.Document(room), Writer()
    for word in "abcdefgh":
        room.send_message("amy", {"update": amy.write(word)})
        answer = document.sync(room, "bob", Writer().vector, None)
        assert Writer().take(answer).endswith(word)


def test_only_what_is_missing_is_answered(room: Room) -> None:
    """Who has everything but the last word gets the last word."""
    document, amy = editor.Document(room), Writer()
    room.send_message("amy", {"update": amy.write("x" * 5000)})
    known = amy.vector
    room.send_message("amy", {"update": amy.write("y")})
    answer = document.sync(room, "amy", known, None)
    assert len(answer["update"]) < 100


def test_a_copy_that_fell_behind_asks_everybody(room: Room) -> None:
    """More events than the history keeps came between two looks: the server asks all for what it lacks."""
    document, amy = editor.Document(room), Writer()
    with document._lock:  # the copy cannot follow
        for word in "abcdefghijklmnop":
            room.send_message("amy", {"update": amy.write(word)})
    answer = document.sync(room, "amy", amy.vector, None)
    asked = [event for event in room.get_recent_events() if event.data.get("data") == {"sync": True}]
    assert asked
    lacking = encode(amy.doc.get_update(base64.b64decode(answer["vector"])))
    document.sync(room, "amy", amy.vector, lacking)
    assert Writer().take(document.sync(room, "bob", Writer().vector, None)) == "abcdefghijklmnop"


@pytest.mark.parametrize("nonsense", ["", "no base64!", encode(b"\xff" * 40)])
def test_nonsense_is_left_out_and_the_rest_goes_on(room: Room, nonsense: str, caplog: pytest.LogCaptureFixture) -> None:
    """A change that is none is logged and skipped; as part of an exchange it is refused."""
    document, amy = editor.Document(room), Writer()
    room.send_message("amy", {"update": amy.write("a")})
    room.send_message("amy", {"update": nonsense})
    room.send_message("amy", {"update": 5})
    room.send_message("amy", {"update": amy.write("b")})
    assert Writer().take(document.sync(room, "bob", Writer().vector, None)) == "ab"
    assert "left out a change by amy" in caplog.text
    with pytest.raises(editor.BadRequest):
        document.sync(room, "bob", amy.vector, nonsense)
    with pytest.raises(editor.BadRequest):
        document.sync(room, "bob", "no base64!", None)


# The program.


@pytest.fixture(scope="module")
def yjs() -> None:
    """The pages need it."""
    if not (EDITOR / "node_modules" / "yjs").is_dir():
        absent("Yjs (npm install --prefix examples/editor)")


@pytest.fixture(scope="module")
def server(yjs: None) -> Iterator[ServeProcess]:
    with example("editor/server.py") as process:
        yield process


def post(url: str, body: object) -> dict[str, str]:
    request = urllib.request.Request(
        url + "/sync", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        found: dict[str, str] = json.load(answer)
        return found


def text_on(server: ServeProcess, room: str) -> str:
    """What the server's copy says."""
    with WsClient(("127.0.0.1", server.port), room_id=room, player_id="reader") as reader:
        reader.expect("welcome")
        seat = {"room": room, "player_id": "reader", "token": reader.welcome["token"]}
        writer = Writer()
        text = writer.take(post(server.url, {**seat, "vector": writer.vector}))
        reader.do("leave")
        return text


def test_who_has_no_seat_gets_no_text(server: ServeProcess) -> None:
    """The exchange asks for the seat's token; malformed questions are refused."""
    writer = Writer()
    make = urllib.request.Request(
        server.url + "/api/rooms", b'{"id":"secret"}', {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(make, timeout=PATIENCE).close()
    with WsClient(("127.0.0.1", server.port), room_id="secret", player_id="amy") as amy:
        amy.expect("welcome")
        right = {"room": "secret", "player_id": "amy", "token": amy.welcome["token"], "vector": writer.vector}
        assert post(server.url, right)["update"]
        for wrong, status in [
            ({"token": "guessed-guessed-guessed-guessed"}, 403),
            ({"player_id": "bob"}, 403),
            ({"room": "none"}, 403),
            ({"vector": 1}, 400),
            ({"vector": "%"}, 400),
            ({"update": 1}, 400),
            ({"update": "%"}, 400),
        ]:
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(server.url, {**right, **wrong})
            refused.value.close()
            assert refused.value.code == status, wrong


def come_in(visitor: Visitor, room: str) -> None:
    visitor.come_in(f"/?room={room}")
    visitor.page.wait_for_selector("#text:enabled")


def write(visitor: Visitor, text: str, at: str = "end") -> None:
    """Type at the start, or at the end."""
    visitor.page.eval_on_selector(
        "#text",
        "(area, at) => { area.focus(); const i = at === 'end' ? area.value.length : 0; area.setSelectionRange(i, i); }",
        at,
    )
    visitor.page.keyboard.type(text)


def type_by_itself(visitor: Visitor, words: list[str]) -> None:
    """Begin to type at the end, one word after the other, whatever happens meanwhile; `typing` is the promise of it."""
    visitor.page.evaluate(
        """(words) => {
          const area = document.getElementById('text');
          area.focus();
          window.typing = (async () => {
            for (const word of words) {
              area.setSelectionRange(area.value.length, area.value.length);
              document.execCommand('insertText', false, word);
              await new Promise((resolve) => setTimeout(resolve, 5));
            }
          })();
        }""",
        words,
    )


def text_of(visitor: Visitor) -> str:
    return str(visitor.page.input_value("#text"))


def expect_same(*visitors: Visitor, text: str | None = None, length: int | None = None) -> str:
    """All come to the same text (this one, or one of this length), and have nothing left to save."""
    for visitor in visitors:
        visitor.page.wait_for_selector("#saved:text-is('Saved')")
        if text is not None:
            visitor.wait_until("document.getElementById('text').value === x", text)
        else:
            visitor.wait_until("document.getElementById('text').value.length === x", length)
    found = {text_of(visitor) for visitor in visitors}
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.browser
def test_two_write_at_once_one_loses_the_network_and_all_have_the_same(
    server: ServeProcess, visitors: Visitors
) -> None:
    """Amy and Bob type at the same time; Bob loses the network and both go on; when it is back both have the same text,
    with everything that either typed, in pieces as they typed them; so has the server, and so has a newcomer.
    """
    with Proxy(server.port) as network:
        amy, bob = visitors(server.url, "Amy"), visitors(network.url, "Bob", phone=True)
        for visitor in (amy, bob):
            come_in(visitor, "both")
        write(amy, "One line.\n")
        expect_same(amy, bob, text="One line.\n")
        for visitor, who in ((amy, "a"), (bob, "b")):
            type_by_itself(visitor, [f"[{who}{number}]" for number in range(10, 60)])
        for visitor in (amy, bob):
            visitor.page.evaluate("typing")
        length = len("One line.\n") + 100 * 5
        expect_same(amy, bob, length=length)
        write(amy, "", at="start")
        bob.page.wait_for_selector("#people li:has-text('Amy') .soft:text-is('line 1')")
        amy.shoot("editor-1280")
        bob.pardoned = NETWORK_LOST
        network.cut()
        bob.page.wait_for_selector("#notice:has-text('The connection is lost')")
        for number in range(5):
            write(amy, f"[a{number}]", at="start")
            write(bob, f"[b{number}]")
            write(bob, f"[c{number}]", at="start")
        assert bob.text("#saved").startswith("Not saved")
        assert "[c4]" not in text_of(amy)
        assert "[a4]" not in text_of(bob)
        bob.shoot("editor-offline-375")
        network.restore()
        bob.page.click("#connection")
        same = expect_same(amy, bob, length=length + 15 * 4)
        words = [f"[{who}{number}]" for who in "ab" for number in range(10, 60)]
        words += [f"[{who}{number}]" for who in "abc" for number in range(5)]
        assert [word for word in words if same.count(word) != 1] == []
        assert text_on(server, "both") == same
        cat = visitors(server.url, "Cat")
        come_in(cat, "both")
        expect_same(amy, bob, cat, text=same)
        bob.expect_fits()


@pytest.mark.browser
def test_large_pastes_and_difficult_characters(server: ServeProcess, visitors: Visitors) -> None:
    """A text far over what is relayed, deleting all of it, characters of two units that differ by half, carriage
    returns from another client, and a change that is none: both pages and the server have the same.
    """
    amy, bob = visitors(server.url, "Amy"), visitors(server.url, "Bob")
    for visitor in (amy, bob):
        come_in(visitor, "large")
    large = "".join(f"line {number} {'and so on ' * 30}\U0001f600\n" for number in range(100))
    amy.page.fill("#text", large)
    expect_same(amy, bob, text=large)
    assert text_on(server, "large") == large
    bob.page.fill("#text", "")
    expect_same(amy, bob, text="")
    amy.page.fill("#text", "smile \U0001f600")
    expect_same(amy, bob, text="smile \U0001f600")
    bob.page.fill("#text", "smile \U0001f601")
    expect_same(amy, bob, text="smile \U0001f601")
    with WsClient(("127.0.0.1", server.port), room_id="large", player_id="dos") as dos:
        dos.expect("welcome")
        writer = Writer()
        dos.do("message", {"update": writer.write("\r\nfrom elsewhere\r\n")})
        dos.do("message", {"update": "nonsense"})
    amy.page.wait_for_selector("#saved")
    amy.wait_until("document.getElementById('text').value.includes('from elsewhere')")
    write(amy, "!")
    amy.wait_until("document.getElementById('text').value.endsWith('!')")
    bob.wait_until("document.getElementById('text').value === x", text_of(amy))


@pytest.mark.browser
def test_the_caret_stays_where_it_is_in_the_text(server: ServeProcess, visitors: Visitors) -> None:
    """Bob writes in front of Amy's caret and behind it; what she types next stands where she was."""
    amy, bob = visitors(server.url, "Amy"), visitors(server.url, "Bob")
    for visitor in (amy, bob):
        come_in(visitor, "caret")
    write(amy, "middle")
    expect_same(amy, bob, text="middle")
    write(bob, "before ", at="start")
    write(bob, " after")
    expect_same(amy, bob, text="before middle after")
    amy.page.keyboard.type("!")
    expect_same(amy, bob, text="before middle! after")


@pytest.mark.browser
def test_undo_takes_back_what_was_typed_here(server: ServeProcess, visitors: Visitors) -> None:
    """Amy's undo takes back her words and leaves Bob's, also those that came after; redo brings hers back."""
    amy, bob = visitors(server.url, "Amy"), visitors(server.url, "Bob")
    for visitor in (amy, bob):
        come_in(visitor, "undo")
    write(bob, "theirs")
    expect_same(amy, bob, text="theirs")
    write(amy, "")
    amy.page.keyboard.insert_text(" mine")
    expect_same(amy, bob, text="theirs mine")
    write(bob, " more")
    expect_same(amy, bob, text="theirs mine more")
    amy.page.keyboard.press("Control+z")
    expect_same(amy, bob, text="theirs more")
    amy.page.keyboard.press("Control+Shift+z")
    expect_same(amy, bob, text="theirs mine more")


@pytest.mark.browser
def test_the_text_outlives_the_server(yjs: None, visitors: Visitors) -> None:
    """The server ends and another one takes its place, knowing nothing: the pages bring it the text."""
    with example("editor/server.py") as first:
        amy, bob = visitors(first.url, "Amy"), visitors(first.url, "Bob")
        for visitor in (amy, bob):
            come_in(visitor, "outlives")
            visitor.pardoned = NETWORK_LOST
        write(amy, "still here")
        expect_same(amy, bob, text="still here")
    amy.page.wait_for_selector("#connection:not([data-state=open])")
    write(amy, ", and written meanwhile")
    with example("editor/server.py", "--port", str(first.port)) as second:
        for visitor in (amy, bob):
            visitor.page.click("#connection:not([data-state=connecting])")  # at once, instead of when it was told to
            visitor.page.wait_for_selector("#connection[data-state=open]")
        expect_same(amy, bob, text="still here, and written meanwhile")
        assert text_on(second, "outlives") == "still here, and written meanwhile"


def test_the_difference_between_two_texts() -> None:
    """For random texts of few letters, with characters of two units: applied to the first it gives the second, and
    never cuts a character in two.
    """
    script = """
    import { difference } from './examples/editor/page/binding.js';
    const letters = ['a', 'b', '\\u{1f600}', '\\u{1f601}', '\\u{1fa00}', '\\n'];
    let seed = 7;
    const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
    const text = () => Array.from({ length: random(6) }, () => letters[random(letters.length)]).join('');
    for (let i = 0; i < 100000; i++) {
      const [before, after] = [text(), text()];
      const { index, remove, insert } = difference(before, after, random(after.length + 1));
      const made = before.slice(0, index) + insert + before.slice(index + remove);
      const parts = [before.slice(0, index), before.slice(index, index + remove), insert];
      const whole = parts.every((part) => part.isWellFormed());
      if (made !== after || !whole) throw new Error(JSON.stringify([before, after]));
    }
    """
    subprocess.run(
        [need_program("node"), "--input-type=module", "-e", script], cwd=EDITOR.parents[1], check=True, timeout=PATIENCE
    )
