"""The table in words and pictures: complete, exact, and such that nothing in the drawing covers anything."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomkit.core.diagram import to_markdown, to_mermaid, to_page
from roomkit.core.drawing import Arrow, Picture, Rect, layout, to_svg
from roomkit.core.lifecycle import GAME, Lifecycle, Rule

DOCS = Path(__file__).parents[2] / "docs"

CHAT = Lifecycle("chat", {"open": {"close": "closed"}})

AUCTION = Lifecycle(
    "auction",
    {
        "open": {"bid": "open", "begin_closing": "closing", "close": "closed"},
        "closing": {
            "bid": [("late", "open"), "closing"],
            "hammer": [("has_bid", "sold"), "closed"],
            "close": "closed",
        },
        "sold": {"settle": "closed", "close": "closed"},
    },
    finished=["sold"],
    guards={"late": lambda facts: False, "has_bid": lambda facts: True},
)


def ten_statuses() -> Lifecycle:
    """A magazine's articles: every kind of edge, near and far."""
    names = ["draft", "submitted", "assigned", "reviewing", "changes-asked", "approved", "scheduled", "published"]
    names.append("archived")
    table: dict[str, dict[str, Any]] = {name: {"close": "gone"} for name in names}
    for name, following in itertools.pairwise(names):
        table[name]["next"] = following
    table["reviewing"] |= {"approve": [("two_reviewers", "approved"), "reviewing"], "unassign": "submitted"}
    table["changes-asked"] |= {"resubmit": "reviewing", "withdraw": "draft"}
    table["submitted"]["fast_track"] = "approved"
    table["approved"]["publish_now"] = "published"
    table["scheduled"]["unschedule"] = "approved"
    table["published"]["retract"] = "draft"
    table["archived"]["restore"] = "published"
    guards = {"two_reviewers": lambda facts: False}
    return Lifecycle("article", table, closed="gone", guards=guards, finished=["archived"])


TEN = ten_statuses()
#: Names that break a format that does not escape them.
HOSTILE = Lifecycle(
    'a<b>&"c"\n|d',
    {
        "end": {"x: y;": "<script>alert(1)</script>", "a|b": "end"},
        "<script>alert(1)</script>": {"--> [*]": "等待 玩家", "%%{init}%%": "end", "\x00\x1b[0m\ud800": "]]>"},
        "等待 玩家": {"`*_[link](x)_*`": "]]>"},
        "]]>": {"close": "status_1", '"#quot;': "end"},
        "status_1": {},
    },
    closed="status_1",
)
EXAMPLES = [GAME, CHAT, AUCTION, TEN, HOSTILE, Lifecycle("nothing", {"closed": {}})]


def named(lifecycle: Lifecycle) -> str:
    return re.sub(r"\W+", "-", lifecycle.name)


each = pytest.mark.parametrize("lifecycle", EXAMPLES, ids=named)


@st.composite
def lifecycles(draw: st.DrawFn) -> Lifecycle:
    """Any valid table of up to eight statuses."""
    count = draw(st.integers(1, 8))
    names = [f"{'long_' * draw(st.integers(0, 3))}s{n}" for n in range(count)]
    operations = [f"operation_{n}" for n in range(4)] + ["start_game", "close"]
    guards = ["empty", "full", "enough_players"]
    table: dict[str, dict[str, Any]] = {name: {} for name in names}
    for n, name in enumerate(names[1:]):
        table[names[draw(st.integers(0, n))]][f"go_{n}"] = name  # so that it can be reached
    for name in names:
        for operation in draw(st.sets(st.sampled_from(operations))):
            chosen = draw(st.lists(st.sampled_from(guards), max_size=2, unique=True))
            targets = [draw(st.sampled_from([*names, "closed"])) for _ in range(len(chosen) + 1)]
            table[name][operation] = [*zip(chosen, targets[1:], strict=True), targets[0]]
        if "close" not in table[name] or draw(st.booleans()):
            table[name]["close"] = "closed"
        else:
            table[name]["end"] = "closed"
    return Lifecycle("random", table)


def transitions(lifecycle: Lifecycle) -> Iterator[tuple[str, str, str]]:
    """Every way from one status to another, "operation [guard]", read from the table."""
    for status, row in lifecycle.table.items():
        for operation, rules in row.items():
            for rule in rules:
                guard = rule.guard or ("else" if len(rules) > 1 else "")
                yield str(status), str(rule.status), f"{operation} [{guard}]" if guard else operation


# Markdown


def test_the_game_as_a_table_says_what_the_design_says() -> None:
    assert to_markdown(GAME) == (
        "Lifecycle **game**: a room starts as waiting and ends as closed; `-` is refused with `InvalidTransition`.\n"
        "\n"
        "| operation | waiting | preparing | ready | playing | finished | closed |\n"
        "|---|---|---|---|---|---|---|\n"
        "| add_player | preparing if enough_players, else waiting | preparing | - | - | - | - |\n"
        "| remove_player | waiting | waiting if too_few_players, else ready if all_ready, else preparing "
        "| waiting if too_few_players, else ready | playing | finished | - |\n"
        "| set_player_ready | - | ready if all_ready, else preparing | ready if all_ready, else preparing "
        "| - | - | - |\n"
        "| select_song | waiting | preparing | preparing | - | - | - |\n"
        "| start_game | - | - | playing | - | - | - |\n"
        "| finish_game | - | - | - | finished | - | - |\n"
        "| close | closed | closed | closed | closed | closed | no-op |\n"
    )


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, unescaped."""
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def in_words(rule: Rule) -> str:
    return rule.status if rule.guard is None else f"{rule.status} if {rule.guard}"


@given(lifecycles())
def test_every_cell_of_any_table_is_in_the_markdown(lifecycle: Lifecycle) -> None:
    header, dashes, *rows = to_markdown(lifecycle).splitlines()[2:]
    assert cells(header) == ["operation", *lifecycle.statuses]
    assert dashes == "|" + "---|" * (1 + len(lifecycle.statuses))
    assert [cells(row)[0] for row in rows] == list(lifecycle.all_operations)
    for operation, row in zip(lifecycle.all_operations, rows, strict=True):
        for status, cell in zip(lifecycle.statuses, cells(row)[1:], strict=True):
            rules = lifecycle.table[status].get(operation, ())
            expected = ", else ".join(map(in_words, rules)) or "-"
            assert cell == ("no-op" if (status, operation) == ("closed", "close") else expected)


def test_names_cannot_break_out_of_the_markdown_table() -> None:
    lines = to_markdown(HOSTILE).splitlines()
    assert lines[0].startswith(r'Lifecycle **a\<b\>\&"c" \|d**: a room starts as end and')
    assert {len(cells(line)) for line in lines[2:3] + lines[4:]} == {6}
    assert r"\`\*\_\[link\](x)\_\*\`" in to_markdown(HOSTILE)
    assert "".join(lines).isprintable()


# Mermaid

_EDGE = re.compile(r"    (\S+) --> (\S+)(?: : (.+))?")


def mermaid_edges(lines: list[str]) -> dict[tuple[str, str], set[str]]:
    """What the lines of a diagram draw, by its ends."""
    found = {}
    for line in lines:
        edge = _EDGE.fullmatch(line)
        assert edge, line
        assert (edge[1], edge[2]) not in found, "one line for each pair"
        found[edge[1], edge[2]] = set((edge[3] or "").split(", "))
    return found


@pytest.mark.parametrize("include_self", [False, True])
@given(lifecycles())
def test_mermaid_has_one_edge_for_each_pair_with_all_that_leads_there(include_self: bool, lifecycle: Lifecycle) -> None:
    expected: dict[tuple[str, str], set[str]] = {("[*]", lifecycle.initial): {""}, ("closed", "[*]"): {""}}
    for source, target, text in transitions(lifecycle):
        if source != target or (include_self and source != "closed"):
            expected.setdefault((source, target), set()).add(text)
    first, *rest = to_mermaid(lifecycle, include_self).splitlines()
    assert first == "stateDiagram-v2"
    assert mermaid_edges(rest) == expected


def test_the_game_in_mermaid_shows_guards_in_brackets() -> None:
    text = to_mermaid(GAME)
    assert text.startswith("stateDiagram-v2\n    [*] --> waiting\n")
    assert "    waiting --> preparing : add_player [enough_players]\n" in text
    assert "    ready --> preparing : set_player_ready [else], select_song\n" in text
    assert text.endswith("    closed --> [*]\n")
    assert "    playing --> playing : remove_player\n" in to_mermaid(GAME, include_self=True)


def test_names_that_mermaid_does_not_take_get_another_and_are_escaped() -> None:
    """Checked with mermaid.parse of Mermaid 11.17 as well, which is no dependency of the tests."""
    _, *lines = to_mermaid(HOSTILE).splitlines()
    states, rest = lines[:5], lines[5:]
    assert states == [
        '    state "end" as status_0',
        '    state "#60;script#62;alert(1)#60;/script#62;" as status_1',
        '    state "等待 玩家" as status_2',
        '    state "]]#62;" as status_3',
        '    state "status_1" as status_4',
    ]
    edges = mermaid_edges(rest)
    assert set(edges) == {
        ("[*]", "status_0"),
        ("status_0", "status_1"),
        ("status_1", "status_2"),
        ("status_1", "status_0"),
        ("status_1", "status_3"),
        ("status_2", "status_3"),
        ("status_3", "status_4"),
        ("status_3", "status_0"),
        ("status_4", "[*]"),
    }
    assert edges["status_0", "status_1"] == {"x#58; y#59;"}
    assert edges["status_1", "status_2"] == {"#45;#45;#62; [*]"}
    assert edges["status_1", "status_0"] == {"#37;#37;#123;init#125;#37;#37;"}


# SVG

_SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str, kind: str) -> list[str]:
    """The texts of a class, in the order in which they are drawn."""
    root = ElementTree.fromstring(svg.encode())
    return [e.text or "" for e in root.iter(f"{_SVG}text") if kind in e.get("class", "").split()]


@each
def test_the_drawing_is_valid_xml_that_tells_a_screen_reader_what_it_shows(lifecycle: Lifecycle) -> None:
    root = ElementTree.fromstring(to_svg(lifecycle).encode())
    assert root.tag == f"{_SVG}svg"
    assert root.get("role") == "img"
    assert [child.tag for child in root[:2]] == [f"{_SVG}title", f"{_SVG}desc"]
    assert (root[0].text or "").startswith("The lifecycle ")
    assert (root[1].text or "").startswith("A room starts as ")
    for outside in ("href", "<script", "@import", "url(", "<foreignObject"):
        assert outside not in to_svg(lifecycle)


def test_the_description_says_all_that_is_drawn() -> None:
    root = ElementTree.fromstring(to_svg(AUCTION).encode())
    assert root[0].text == "The lifecycle auction"
    assert root[1].text == (
        "A room starts as open and ends as closed. From open to closed: close. From open to closing: begin_closing. "
        "From closing to closed: close, hammer [else]. From closing to open: bid [late]. "
        "From closing to sold: hammer [has_bid]. From sold to closed: close, settle."
    )


@each
def test_every_status_is_drawn_once_and_every_label_is_text(lifecycle: Lifecycle) -> None:
    svg, picture = to_svg(lifecycle), layout(lifecycle)
    assert texts(svg, "name") == [" ".join(box.status.split()) for box in picture.boxes]
    assert sorted(box.status for box in picture.boxes) == sorted(map(str, lifecycle.statuses))
    drawn = [line for arrow in picture.arrows if arrow.label for group in arrow.label.groups for line in group]
    assert sorted(texts(svg, "label")) == sorted(drawn)


def test_names_that_xml_forbids_are_replaced_and_others_escaped() -> None:
    labels = texts(to_svg(HOSTILE), "label")
    assert "\ufffd\ufffd[0m\ufffd" in labels
    assert "--> [*]" in labels
    assert "<script>alert(1)</script>" in texts(to_svg(HOSTILE), "name")


@pytest.mark.parametrize(
    ("lifecycle", "order"),
    [
        (GAME, "waiting preparing ready playing finished closed"),
        (CHAT, "open closed"),
        (AUCTION, "open closing sold closed"),
        (TEN, "draft submitted assigned reviewing changes-asked approved scheduled published archived gone"),
    ],
    ids=["game", "chat", "auction", "ten"],
)
def test_statuses_stand_in_the_order_in_which_a_room_passes_through_them(lifecycle: Lifecycle, order: str) -> None:
    assert [box.status for box in layout(lifecycle).boxes] == order.split()


def test_the_order_does_not_depend_on_the_order_of_declaration() -> None:
    table: dict[str, Any] = {status: GAME.table[status] for status in reversed(GAME.statuses)}
    shuffled = Lifecycle("game", table, initial="waiting")
    assert [box.status for box in layout(shuffled).boxes] == [box.status for box in layout(GAME).boxes]


def test_kinds_of_statuses_and_arrows() -> None:
    game = layout(GAME)
    assert [box.kind for box in game.boxes] == ["status"] * 4 + ["finished", "closed"]
    kinds = {(arrow.source, arrow.target): arrow.kind for arrow in game.arrows}
    assert kinds["waiting", "preparing"] == "forward"
    assert kinds["ready", "waiting"] == "backward"
    assert {pair for pair, kind in kinds.items() if kind == "light"} == {
        (str(status), "closed") for status in GAME.statuses if status != "closed"
    }
    assert '<rect class="closed"' in to_svg(GAME)
    assert to_svg(GAME).count('<rect class="closed"') == 2, "a double border"


def test_the_drawing_explains_what_it_leaves_out_and_what_green_means() -> None:
    green, kept = "green: closes by itself after a time", "not drawn: operations that keep the status"
    assert texts(to_svg(GAME), "note") == [f"{green}; {kept}"]
    assert texts(to_svg(HOSTILE), "note") == [kept]
    assert texts(to_svg(CHAT), "note") == []


def test_a_small_drawing_is_as_wide_as_its_note() -> None:
    small = Lifecycle("small", {"open": {"select_song": "open", "close": "closed"}}, finished=["open"])
    picture = layout(small)
    assert picture.note == "green: closes by itself after a time; not drawn: operations that keep the status"
    assert picture.width >= 430, "what it takes at 11 pixels, with its margins"
    assert layout(CHAT).width < 300


@given(lifecycles())
def test_everything_in_the_table_is_drawn_once(lifecycle: Lifecycle) -> None:
    expected = {(source, target, text) for source, target, text in transitions(lifecycle) if source != target}
    drawn = [
        (arrow.source, arrow.target, text)
        for arrow in layout(lifecycle).arrows
        for text in ([text for group in arrow.label.groups for text in spelled(group)] if arrow.label else ["close"])
    ]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == expected


def spelled(group: tuple[str, ...]) -> list[str]:
    """A group of lines as one "operation [guard]" for each operation."""
    guard = group[-1] if group[-1].startswith("[") else ""
    return [f"{operation} {guard}".strip() for operation in group if operation != guard]


# Where things are


def overlap(one: Rect, other: Rect, gap: float = 0.0) -> bool:
    return (
        one.x < other.x + other.width + gap
        and other.x < one.x + one.width + gap
        and one.y < other.y + other.height + gap
        and other.y < one.y + one.height + gap
    )


def segments(arrow: Arrow) -> list[Rect]:
    """The parts of a line, each as a thin rectangle."""
    return [
        Rect(min(x1, x2), min(y1, y2), abs(x1 - x2), abs(y1 - y2))
        for (x1, y1), (x2, y2) in itertools.pairwise(arrow.points)
    ]


def check(picture: Picture) -> None:
    """Nothing covers anything, and everything is inside the picture."""
    page = Rect(0, 0, picture.width, picture.height)
    labels = [arrow.label.rect for arrow in picture.arrows if arrow.label]
    boxes = [box.rect for box in picture.boxes]
    for rect in [*labels, *boxes, *(part for arrow in picture.arrows for part in segments(arrow))]:
        assert rect.x >= 8
        assert rect.y >= 8
        assert rect.x + rect.width <= page.width - 8
        assert rect.y + rect.height <= page.height - 8
    for left, right in itertools.pairwise(boxes):
        assert left.x + left.width + 40 <= right.x
    for label in labels:
        assert not any(overlap(label, box, 2.0) for box in boxes)
    for one, second in itertools.combinations(labels, 2):
        assert not overlap(one, second, 2.0)
    for arrow in picture.arrows:
        for part in segments(arrow):
            assert not any(overlap(part, box) for box in boxes), "a line through a box"
            for other in picture.arrows:
                joins = arrow.label is None and other.kind == "light"
                if other.label is not None and other is not arrow and not joins:
                    assert not overlap(part, other.label.rect, 1.0), "a line through another's label"
    for one_arrow, other_arrow in itertools.combinations(picture.arrows, 2):
        if one_arrow.kind == other_arrow.kind == "light":
            continue
        for part, other_part in itertools.product(segments(one_arrow), segments(other_arrow)):
            if (part.width > 0) == (other_part.width > 0):  # parallel: crossing is fine, running together is not
                assert not overlap(part, other_part, 3.0), (one_arrow, other_arrow)


@each
def test_nothing_covers_anything(lifecycle: Lifecycle) -> None:
    check(layout(lifecycle))


@given(lifecycles())
def test_nothing_covers_anything_whatever_the_table(lifecycle: Lifecycle) -> None:
    check(layout(lifecycle))
    ElementTree.fromstring(to_svg(lifecycle))


@each
def test_arrows_begin_and_end_at_their_boxes(lifecycle: Lifecycle) -> None:
    picture = layout(lifecycle)
    boxes = {box.status: box.rect for box in picture.boxes}
    for arrow in picture.arrows:
        ends = [(arrow.points[0], boxes[arrow.source])]
        if arrow.label is not None:
            ends.append((arrow.points[-1], boxes[arrow.target]))
        for (x, y), box in ends:
            assert box.x <= x <= box.x + box.width
            assert y in (box.y, box.y + box.height) or x in (box.x, box.x + box.width)
        row = boxes[arrow.source]
        lanes = [y for _, y in arrow.points]
        assert max(lanes) > row.y + row.height if arrow.kind == "backward" else max(lanes) <= row.y + row.height


@each
def test_lines_that_join_end_on_the_line_they_join(lifecycle: Lifecycle) -> None:
    picture = layout(lifecycle)
    for arrow in picture.arrows:
        if arrow.label is None:
            (x, y) = arrow.points[-1]
            trunks = [other for other in picture.arrows if other.kind == "light" and other.label is not None]
            assert any(
                part.y == y and part.height == 0 and part.x <= x <= part.x + part.width
                for trunk in trunks
                for part in segments(trunk)
            )


#: Widths at 12 pixels in DejaVu Sans, the widest of the fonts that a browser may choose (measured in Chromium).
MEASURED = {
    "add_player": 66.4,
    "[enough_players]": 104.8,
    "remove_player": 89.4,
    "[too_few_players]": 106.5,
    "set_player_ready": 102.2,
    "[all_ready]": 64.1,
    "[else]": 34.0,
    "select_song": 70.5,
    "start_game": 68.0,
    "finish_game": 72.4,
    "close": 30.9,
}


def test_labels_are_given_as_much_space_as_they_take() -> None:
    """Within the 14 pixels or more that are free around each."""
    for arrow in layout(GAME).arrows:
        if arrow.label is not None:
            lines = [line for group in arrow.label.groups for line in group]
            assert arrow.label.rect.width >= max(MEASURED[line] for line in lines) - 6
            assert arrow.label.rect.height >= 14 * len(lines)


def test_the_game_fits_a_readme() -> None:
    """At 900 pixels across, its 12 pixel labels stay above 11."""
    assert 12 * 900 / layout(GAME).width >= 11


# The files in docs/


@pytest.mark.parametrize(
    ("name", "form", "draw"), [("fsm.svg", "svg", to_svg), ("fsm.md", "page", to_page)], ids=["svg", "page"]
)
def test_the_docs_are_what_the_table_says(name: str, form: str, draw: Callable[[Lifecycle], str]) -> None:
    path = DOCS / name
    command = f"python -m roomkit fsm --format {form} --output docs/{name}"
    assert path.exists() and path.read_text(encoding="utf-8") == draw(GAME), f"out of date; run: {command}"  # noqa: PT018


@each
def test_a_page_holds_the_table_and_the_diagram(lifecycle: Lifecycle) -> None:
    page = to_page(lifecycle)
    assert to_markdown(lifecycle) in page
    assert f"\n```mermaid\n{to_mermaid(lifecycle)}```\n" in page
