"""The transition table as text: Markdown, Mermaid, and an SVG drawing made of nothing but the table."""

from __future__ import annotations

from roomkit.core.lifecycle import Lifecycle


def to_markdown(lifecycle: Lifecycle) -> str:
    return ""


def to_mermaid(lifecycle: Lifecycle) -> str:
    return ""


def to_svg(lifecycle: Lifecycle) -> str:
    return ""
