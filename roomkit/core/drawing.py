"""The transition table as a picture: an SVG made of nothing but the table.

It puts the statuses in one row, in the order in which a room passes through them. What keeps it readable is
where things may be: an arrow to the next status runs through the gap between the two; every other arrow leaves its
box upwards (forwards) or downwards (backwards) into a lane of its own. So lines are vertical only above and below
boxes, labels stand only in gaps, and a gap is made as wide as its labels: nothing can cover anything, whatever the
table.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from roomkit.core.diagram import Transition, edges, one_line
from roomkit.core.lifecycle import Lifecycle

# The drawing: sizes in pixels. "Lane" numbers count away from the row of boxes.

_NAME_SIZE = 13.0
_LABEL_SIZE = 12.0
_NOTE_SIZE = 11.0
_LINE = 14.5  # from one line of a label to the next
_GROUP = 5.0  # more, between operations under different guards
_LIFT = 6.0  # of a label over its straight arrow
_BOX = 42.0  # height of a box
_BOX_MIN = 64.0
_BOX_PADDING = 13.0
_PORT = 16.0  # between the ends of two lines at one box
_GAP_MIN = 44.0
_OVERHANG = 8.0  # of a lane's label, above or below the boxes beside its gap
_MARGIN = 18.0
_START = 34.0  # for the initial marker
_CORNER = 18.0
_LANE_MIN = 26.0
_LANE_SPACE = 10.0  # between the labels of one lane and the next
_HEAD = 8.0  # length of an arrowhead
_FOOTER = 10.0  # for the note
_ABOVE, _BELOW = -1, 1


class Rect(NamedTuple):
    """A rectangle by its left upper corner."""

    x: float
    y: float
    width: float
    height: float


class Box(NamedTuple):
    """A status in the drawing."""

    status: str
    kind: str  # "status", "finished" (closes by itself), "closed"
    rect: Rect


class Label(NamedTuple):
    """What leads along an edge; each group of lines ends with its guard, if it has one."""

    groups: tuple[tuple[str, ...], ...]
    rect: Rect


class Arrow(NamedTuple):
    """An edge in the drawing: a line with right angles, drawn with rounded corners."""

    source: str
    target: str
    kind: str  # "forward", "backward", or "light" (closing from anywhere)
    points: tuple[tuple[float, float], ...]
    label: Label | None  # None: it joins another arrow, and has no head


class Picture(NamedTuple):
    """A laid-out lifecycle: what `to_svg` draws, and what tests can measure."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    note: str  # in the lower right corner


class _Link(NamedTuple):
    """An edge by the places of its ends in the row."""

    start: int
    end: int
    kind: str
    label: Label | None

    @property
    def left(self) -> int:
        return min(self.start, self.end)

    @property
    def right(self) -> int:
        return max(self.start, self.end)

    @property
    def is_straight(self) -> bool:
        return self.end == self.start + 1

    @property
    def side(self) -> int:
        """Where its lane is, if it needs one."""
        return _ABOVE if self.end > self.start else _BELOW

    @property
    def joins(self) -> bool:
        """Whether it ends in the line that the light ones share, which the first of them draws and labels."""
        return self.label is None


def layout(lifecycle: Lifecycle) -> Picture:
    """Where everything goes."""
    order = _in_order(lifecycle)
    links = _links(lifecycle, order)
    straight = [link for link in links if link.is_straight]
    bent = [link for link in links if not link.is_straight]
    lanes = _lanes(bent)
    ports = _ports(bent, lanes, len(order))
    gaps, label_gaps = _gaps(straight, sorted(bent, key=lanes.__getitem__), len(order))
    lefts, widths = _columns(lifecycle, order, ports, gaps)
    # Up and down: lanes above, the row, lanes below.
    tallest = max((_size(link).height + _LIFT + _LANE_SPACE for link in straight), default=0.0)
    up, height_above = _lane_offsets(lanes, _ABOVE, max(_BOX / 2, tallest))
    down, height_below = _lane_offsets(lanes, _BELOW, _BOX / 2)
    middle = _MARGIN + height_above

    def port(place: int, link: _Link) -> float:
        row = ports[place, link.side]
        return lefts[place] + widths[place] / 2 + (row.index(link) - (len(row) - 1) / 2) * _PORT

    def label(link: _Link, gap: int, y: float) -> Label | None:
        size = _size(link)
        centre = (lefts[gap] + widths[gap] + lefts[gap + 1]) / 2
        return link.label and Label(link.label.groups, size._replace(x=centre - size.width / 2, y=y))

    arrows = []
    for link in links:
        line: list[tuple[float, float]]
        if link.is_straight:
            line = [(lefts[link.start] + widths[link.start], middle), (lefts[link.end], middle)]
            text = label(link, link.start, middle - _LIFT - _size(link).height)
        else:
            edge = middle + link.side * _BOX / 2
            lane = middle + link.side * (up if link.side == _ABOVE else down)[lanes[link]]
            first = port(link.start, link)
            line = [(first, edge), (first, lane)]
            line += [(first + _CORNER, lane)] if link.joins else [(port(link.end, link), y) for y in (lane, edge)]
            text = label(link, label_gaps[link], lane - _size(link).height / 2)
        arrows.append(Arrow(order[link.start], order[link.end], link.kind, tuple(line), text))
    kinds = {str(status): "finished" for status in lifecycle.finished} | {str(lifecycle.closed): "closed"}
    boxes = [
        Box(status, kinds.get(status, "status"), Rect(left, middle - _BOX / 2, width, _BOX))
        for status, left, width in zip(order, lefts, widths, strict=True)
    ]
    note = _note(lifecycle)
    width = max(lefts[-1] + widths[-1], _MARGIN + _text_width(note, _NOTE_SIZE)) + _MARGIN
    height = middle + height_below + _MARGIN + (_FOOTER if note else 0.0)
    return Picture(width, height, tuple(boxes), tuple(arrows), note)


def _note(lifecycle: Lifecycle) -> str:
    notes = []
    if lifecycle.finished:
        notes.append("green: closes by itself after a time")
    if len(edges(lifecycle, include_self=True)) > len(edges(lifecycle)):
        notes.append("not drawn: operations that keep the status")
    return "; ".join(notes)


def _in_order(lifecycle: Lifecycle) -> list[str]:
    """The statuses by the longest way to each that never goes back; closed is last."""
    follows: dict[str, list[str]] = {str(status): [] for status in lifecycle.statuses}
    for source, target in edges(lifecycle):
        if target != lifecycle.closed:
            follows[source].append(target)
    declared = list(follows)
    done: list[str] = []
    on_the_way: set[str] = set()

    def visit(status: str) -> None:  # depth first; an edge to where we came from goes back, and is left out
        on_the_way.add(status)
        follows[status] = [target for target in follows[status] if target not in on_the_way]
        for target in sorted(follows[status], key=declared.index):
            if target not in done:
                visit(target)
        on_the_way.remove(status)
        done.append(status)

    visit(str(lifecycle.initial))
    rank = dict.fromkeys(done, 0)
    for status in reversed(done):
        for target in follows[status]:
            rank[target] = max(rank[target], rank[status] + 1)
    return sorted(
        declared, key=lambda status: (status == lifecycle.closed, rank.get(status, 0), declared.index(status))
    )


def _links(lifecycle: Lifecycle, order: Sequence[str]) -> list[_Link]:
    """The edges from left to right, each with its label but the light ones that join another."""
    places = {status: place for place, status in enumerate(order)}
    plain_close = Transition("close", "")
    links = []
    joinable = False
    for (source, target), transitions in sorted(edges(lifecycle).items(), key=lambda edge: places[edge[0][0]]):
        link = _Link(places[source], places[target], "forward", None)
        closes = target == lifecycle.closed and plain_close in transitions
        others = [transition for transition in transitions if not closes or transition != plain_close]
        if others:
            kind = "forward" if link.side == _ABOVE else "backward"
            links.append(link._replace(kind=kind, label=_label(transitions if link.is_straight else others)))
        if closes and not (others and link.is_straight):
            joins = joinable and not link.is_straight
            links.append(link._replace(kind="light", label=None if joins else _label([plain_close])))
            joinable = True  # the straight one is the last
    return links


def _label(transitions: Iterable[Transition]) -> Label:
    groups: dict[str, list[str]] = {}
    for operation, guard in sorted(transitions, key=lambda transition: transition.operation == "close"):
        groups.setdefault(guard, []).append(one_line(operation))
    texts = [
        (*operations, *([f"[{one_line(guard)}]"] if guard else []))
        for guard, operations in sorted(groups.items(), key=lambda group: not group[0])  # those without a guard last
    ]
    width = max(_text_width(line, _LABEL_SIZE) for group in texts for line in group)
    height = sum(map(len, texts)) * _LINE + (len(texts) - 1) * _GROUP
    return Label(tuple(texts), Rect(0.0, 0.0, width, height))


def _size(link: _Link) -> Rect:
    return link.label.rect if link.label else Rect(0.0, 0.0, 0.0, 0.0)


def _lanes(bent: Iterable[_Link]) -> dict[_Link, int]:
    """A lane for each, from 0: shorter ones nearer to the boxes, so that lines cross little; closing outside of all."""
    lanes: dict[_Link, int] = {}
    for link in sorted(bent, key=lambda link: (link.kind == "light", link.joins, link.right - link.left, link.left)):
        if link.joins:
            lanes[link] = next(lane for other, lane in lanes.items() if other.kind == "light")
            continue
        passed = [
            lane
            for other, lane in lanes.items()
            if other.side == link.side
            and (link.kind == "light" or (other.left < link.right and link.left < other.right))
        ]
        lanes[link] = max(passed, default=-1) + 1
    return lanes


def _ports(bent: Sequence[_Link], lanes: Mapping[_Link, int], count: int) -> dict[tuple[int, int], list[_Link]]:
    """The lines at each side of each place in the row, from left to right, so that those of one box never cross."""
    ports: dict[tuple[int, int], list[_Link]] = {(n, side): [] for n in range(count) for side in (_ABOVE, _BELOW)}
    for (place, side), row in ports.items():
        here = [link for link in bent if link.side == side]
        to_left = [link for link in here if link.right == place and not link.joins]
        to_right = [link for link in here if link.left == place]
        row += sorted(to_left, key=lanes.__getitem__) + sorted(to_right, key=lanes.__getitem__, reverse=True)
    return ports


def _choose_gap(link: _Link, gaps: Sequence[float]) -> int:
    """The gap that the label of a bent line stands in: one that is wide enough, near its middle; else the widest."""
    middle = (link.left + link.right - 1) / 2
    wanted = _size(link).width - 2 * _OVERHANG
    return min(range(link.left, link.right), key=lambda gap: (max(0.0, wanted - gaps[gap]), abs(gap - middle)))


def _gaps(straight: Iterable[_Link], bent: Iterable[_Link], count: int) -> tuple[list[float], dict[_Link, int]]:
    """How wide the gap behind each place is, and in which one the label of each bent line stands."""
    gaps = [_GAP_MIN] * (count - 1)
    for link in straight:
        gaps[link.start] = max(gaps[link.start], _size(link).width + _HEAD + 8.0)
    chosen = {}
    for link in bent:
        gap = chosen[link] = _choose_gap(link, gaps)
        gaps[gap] = max(gaps[gap], _size(link).width - 2 * _OVERHANG)
    return gaps, chosen


def _columns(
    lifecycle: Lifecycle, order: Sequence[str], ports: Mapping[tuple[int, int], list[_Link]], gaps: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Left side and width of each box: as wide as its name and its ports ask."""
    lefts, widths = [], []
    x = _MARGIN + _START
    for place, status in enumerate(order):
        name = _text_width(one_line(status), _NAME_SIZE) * 1.06  # semi-bold
        double = 8.0 if status == lifecycle.closed else 0.0
        most_ports = max(len(ports[place, side]) for side in (_ABOVE, _BELOW))
        lefts.append(x)
        widths.append(max(_BOX_MIN, name + 2 * _BOX_PADDING + double, (most_ports + 1) * _PORT))
        x += widths[-1] + sum(gaps[place : place + 1])
    return lefts, widths


def _lane_offsets(lanes: Mapping[_Link, int], side: int, start: float) -> tuple[list[float], float]:
    """How far from the middle of the row the lanes of a side are, and where the last one's labels end."""
    heights: dict[int, float] = {}
    for link, lane in lanes.items():
        if link.side == side:
            heights[lane] = max(heights.get(lane, _LANE_MIN), _size(link).height + _LANE_SPACE)
    offsets = []
    for lane in range(len(heights)):
        half = heights[lane] / 2
        offsets.append(max(start + half, _BOX / 2 + _CORNER + _HEAD + 2.0))
        start = offsets[-1] + half
    return offsets, start


def _text_width(text: str, size: float) -> float:
    """About as wide as common sans-serif fonts make it, rather more than less."""
    return size * sum(_char_width(char) for char in text)


def _char_width(char: str) -> float:
    if char in "fijltrI.,:;!|'()[]/ -":
        return 0.33
    if char in "mwMW@%<>=+~":
        return 0.9
    if unicodedata.east_asian_width(char) in "WF":
        return 1.0
    return 0.7 if char.isupper() else 0.58


# The drawing as SVG. Arrowheads are triangles of their own, and colours stand in classes: no ids that could clash with
# another drawing on the same page.

_STYLE = """
  text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; text-anchor: middle }
  .name { font-size: 13px; font-weight: 600; fill: #1c2733 }
  .label { font-size: 12px; fill: #2b3642 }
  .guard { fill: #5d6b7a; font-style: italic }
  .note { font-size: 11px; fill: #5d6b7a; text-anchor: end }
  .line { fill: none; stroke-width: 1.6; stroke-linecap: round }
  .page, .paper { fill: #ffffff }
  .status { fill: #eaf2ff; stroke: #3f76d8; stroke-width: 1.6 }
  .finished { fill: #e8f7ee; stroke: #2d9a5f; stroke-width: 1.6 }
  .closed { fill: #f1f3f5; stroke: #66727f; stroke-width: 1.4 }
  .forward { stroke: #44566c } .forward-head { fill: #44566c }
  .backward { stroke: #c4622d } .backward-head { fill: #c4622d }
  .light { stroke: #a9b4c0; stroke-width: 1.2 } .light-head { fill: #a9b4c0 }
  .light-label { fill: #66727f }
  @media (prefers-color-scheme: dark) {
    .name { fill: #eef3f8 } .label { fill: #d5dde6 } .guard, .note, .light-label { fill: #9aa7b5 }
    .page, .paper { fill: #11161d }
    .status { fill: #152845; stroke: #5b90ee }
    .finished { fill: #12301f; stroke: #41b877 }
    .closed { fill: #20262d; stroke: #8b97a4 }
    .forward { stroke: #a5b6c9 } .forward-head { fill: #a5b6c9 }
    .backward { stroke: #ec8e58 } .backward-head { fill: #ec8e58 }
    .light { stroke: #566270 } .light-head { fill: #566270 }
  }
"""


def to_svg(lifecycle: Lifecycle) -> str:
    """A drawing that stands alone, for light and dark pages. Operations that keep the status are not drawn."""
    picture = layout(lifecycle)
    name = escape(one_line(lifecycle.name))
    width, height = _n(picture.width), _n(picture.height)
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>The lifecycle {name}</title>",
        f"<desc>{escape(_description(lifecycle))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="10"/>',
    ]
    arrows = sorted(picture.arrows, key=lambda arrow: arrow.kind != "light")  # the light ones under the others
    for arrow in arrows:
        lines += _svg_line(arrow)
    for arrow in arrows:
        lines += _svg_label(arrow)
    lines += _svg_start(next(box.rect for box in picture.boxes if box.status == lifecycle.initial))
    for box in picture.boxes:
        lines += _svg_box(box)
    if picture.note:
        lines.append(_svg_text("note", picture.width - _MARGIN, picture.height - 16.0, picture.note))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _description(lifecycle: Lifecycle) -> str:
    parts = [f"A room starts as {one_line(lifecycle.initial)} and ends as {one_line(lifecycle.closed)}."]
    for (source, target), transitions in edges(lifecycle).items():
        how = ", ".join(str(transition) for transition in transitions)
        parts.append(f"From {source} to {target}: {how}.")
    return one_line(" ".join(parts))


def _svg_line(arrow: Arrow) -> list[str]:
    points = list(arrow.points)
    lines = []
    if arrow.label is not None:
        (x, y), (ahead_x, ahead_y) = points[-1], points[-2]
        across, along = _sign(x - ahead_x), _sign(y - ahead_y)
        back_x, back_y = x - _HEAD * across, y - _HEAD * along
        wide_x, wide_y = 4.0 * along, 4.0 * across
        corners = ((x, y), (back_x + wide_x, back_y + wide_y), (back_x - wide_x, back_y - wide_y))
        where = " ".join(f"{_n(x)},{_n(y)}" for x, y in corners)
        lines.append(f'<polygon class="{arrow.kind}-head" points="{where}"/>')
        points[-1] = (x - 0.75 * _HEAD * across, y - 0.75 * _HEAD * along)  # the line ends inside the head
    path = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _towards(corner, before, _CORNER), _towards(corner, after, _CORNER)
        path.append(f"L{_n(start[0])} {_n(start[1])}Q{_n(corner[0])} {_n(corner[1])} {_n(end[0])} {_n(end[1])}")
    path.append(f"L{_n(points[-1][0])} {_n(points[-1][1])}")
    return [f'<path class="line {arrow.kind}" d="{"".join(path)}"/>', *lines]


def _svg_label(arrow: Arrow) -> list[str]:
    if arrow.label is None:
        return []
    x, y, width, height = arrow.label.rect
    lines = []
    if len(arrow.points) > 2:  # it stands on its line: a piece of paper under it
        paper = f'x="{_n(x - 5)}" y="{_n(y)}" width="{_n(width + 10)}" height="{_n(height)}"'
        lines.append(f'<rect class="paper" {paper}/>')
    y += _LINE - 3.5  # a line's baseline
    for group in arrow.label.groups:
        for text in group:
            kind = "label guard" if text.startswith("[") else f"label {arrow.kind}-label"
            lines.append(_svg_text(kind, x + width / 2, y, text))
            y += _LINE
        y += _GROUP
    return lines


def _svg_start(first: Rect) -> list[str]:
    y = first.y + first.height / 2
    head = Arrow("", "", "forward", ((first.x - _START + 6.0, y), (first.x, y)), Label((), first))
    return [f'<circle class="forward-head" cx="{_n(first.x - _START + 6.0)}" cy="{_n(y)}" r="6"/>', *_svg_line(head)]


def _svg_box(box: Box) -> list[str]:
    def frame(inset: float) -> str:
        x, y, width, height = box.rect
        where = f'x="{_n(x + inset)}" y="{_n(y + inset)}"'
        size = f'width="{_n(width - 2 * inset)}" height="{_n(height - 2 * inset)}"'
        return f'<rect class="{box.kind}" {where} {size} rx="{_n(10.0 - inset)}"/>'

    x, y, width, height = box.rect
    name = _svg_text("name", x + width / 2, y + height / 2 + 4.5, box.status)
    return [frame(0.0), *([frame(3.5)] if box.kind == "closed" else []), name]


def _svg_text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(one_line(text))}</text>'


def _sign(number: float) -> float:
    return (number > 0) - (number < 0)


def _towards(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    return start[0] + distance * _sign(end[0] - start[0]), start[1] + distance * _sign(end[1] - start[1])


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
