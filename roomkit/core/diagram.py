"""The transition table in words: Markdown and Mermaid. The picture is ``drawing.py``'s.

All of it is a pure function of the lifecycle, so the same table gives the same bytes everywhere, and a test can tell
that the files in ``docs/`` are what the table says today.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from roomkit.core.lifecycle import Lifecycle, Rule

# What all three share: the table's words.


class Transition(NamedTuple):
    """One operation on an edge; ``guard`` is its name, "else" after others were tried in vain, or "" (always)."""

    operation: str
    guard: str

    def __str__(self) -> str:
        return f"{self.operation} [{self.guard}]" if self.guard else self.operation


Edges = dict[tuple[str, str], list[Transition]]


def edges(lifecycle: Lifecycle, include_self: bool = False) -> Edges:
    """Every (from, to) pair of statuses with what leads there, in the table's order. ``close`` on closed is no edge."""
    found: Edges = {}
    for source in lifecycle.statuses:
        for operation in lifecycle.all_operations:
            rules = lifecycle.table[source].get(operation, ())
            for rule in rules:
                stays = rule.status == source
                if stays and (not include_self or is_no_op(lifecycle, source, operation)):
                    continue
                guard = rule.guard or ("else" if len(rules) > 1 else "")
                found.setdefault((str(source), str(rule.status)), []).append(Transition(operation, guard))
    return found


def is_no_op(lifecycle: Lifecycle, status: str, operation: str) -> bool:
    return status == lifecycle.closed and operation == "close"


def one_line(text: str) -> str:
    """The text without line breaks and without characters that XML forbids."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


# Markdown.

_MARKDOWN = re.compile(r"[\\|*`\[\]<>&~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def to_markdown(lifecycle: Lifecycle) -> str:
    """The table, operation x status, in words; ``-`` stands for refused."""
    lines = [
        f"Lifecycle **{_markdown(lifecycle.name)}**: a room starts as {_markdown(lifecycle.initial)} and ends as "
        f"{_markdown(lifecycle.closed)}; `-` is refused with `InvalidTransition`.",
        "",
        _row("operation", *map(_markdown, lifecycle.statuses)),
        "|---" * (1 + len(lifecycle.statuses)) + "|",
    ]
    for operation in lifecycle.all_operations:
        cells = (_words(lifecycle, status, operation) for status in lifecycle.statuses)
        lines.append(_row(_markdown(operation), *cells))
    return "\n".join(lines) + "\n"


def to_page(lifecycle: Lifecycle) -> str:
    """A Markdown page with the table and the Mermaid diagram."""
    return (
        f"# The lifecycle of a room\n\n{to_markdown(lifecycle)}\n```mermaid\n{to_mermaid(lifecycle)}```\n\n"
        "Operations that keep the status are in the table only. Written by `roomkit fsm` from the table in the code.\n"
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _words(lifecycle: Lifecycle, status: str, operation: str) -> str:
    if is_no_op(lifecycle, status, operation):
        return "no-op"
    rules = lifecycle.table[status].get(operation, ())
    return ", else ".join(_alternative(rule) for rule in rules) or "-"


def _alternative(rule: Rule) -> str:
    status = _markdown(rule.status)
    return status if rule.guard is None else f"{status} if {_markdown(rule.guard)}"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(lambda match: "\\" + match[0], one_line(str(text)))


# Mermaid.

#: What Mermaid's grammar might take for something else where the id of a state should be.
_MERMAID_WORDS = re.compile(
    "accdescr|acctitle|as|choice|class|classdef|click|default|direction|end|fork|hide|href|join|left|note|right|scale"
    "|state|style|title",
    re.IGNORECASE,
)
_MERMAID_ID = re.compile(r"(?!status_\d)[A-Za-z][A-Za-z0-9_]*")
_MERMAID_UNSAFE = re.compile(r"[^\w \[\],.()/+*=!?@$^-]|--+")


def to_mermaid(lifecycle: Lifecycle, include_self: bool = False) -> str:
    """A Mermaid ``stateDiagram-v2``. Operations that keep the status are drawn only with ``include_self``."""
    ids = {str(status): _mermaid_id(str(status), n) for n, status in enumerate(lifecycle.statuses)}
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{_mermaid(status)}" as {name}' for status, name in ids.items() if status != name]
    lines.append(f"    [*] --> {ids[lifecycle.initial]}")
    for (source, target), transitions in edges(lifecycle, include_self).items():
        label = ", ".join(_mermaid(str(transition)) for transition in transitions)
        lines.append(f"    {ids[source]} --> {ids[target]} : {label}")
    lines.append(f"    {ids[lifecycle.closed]} --> [*]")
    return "\n".join(lines) + "\n"


def _mermaid_id(status: str, number: int) -> str:
    plain = _MERMAID_ID.fullmatch(status) and not _MERMAID_WORDS.fullmatch(status)
    return status if plain else f"status_{number}"


def _mermaid(text: str) -> str:
    """The text with entities, in Mermaid's own form, for what its grammar would take for its own."""
    return _MERMAID_UNSAFE.sub(lambda match: "".join(f"#{ord(char)};" for char in match[0]), one_line(text))
