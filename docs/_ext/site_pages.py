"""What the site does with the Markdown pages beside showing them.

* A link to a file of the project (``../roomkit/room.py#Room.join``) leads to a page with its source, at the definition
  of that name. A name that is not defined there is a warning, so that no such link goes stale unseen. The reference's
  links to the source lead there too.
* A fence ``python game.py`` shows the file's name above the code.
* The Mermaid text in ``fsm.md`` becomes the drawing that comes from the same table.
"""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import operator
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers.javascript import JavascriptLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
_LANGUAGES = {".py": "python", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript", ".cfg": "ini"}
_LINK = re.compile(r"\]\((\.\.?/[^)\s#]+)(#[\w.-]+)?\)")
_FILE_FENCE = re.compile(r"^```(\w+) ([\w./-]+\.\w+)$", re.MULTILINE)
_MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"(^```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)


class LooseJson(JavascriptLexer):
    """JSON in which ``...`` stands for what is left out."""

    name = "JSON with omissions"


def prepare(app: Sphinx, docname: str, content: list[str]) -> None:
    """Rewrite a page's Markdown (see the module) before it is parsed."""
    folder = posixpath.dirname(docname)

    def to_source(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        if path.startswith("docs/") or not (ROOT / path).is_file():
            return match[0]
        return f"](source:{path}{match[2] or ''})"

    text = _MERMAID.sub("![The table as a drawing](fsm.svg)", content[0]) if docname == "fsm" else content[0]
    parts = _FENCED.split(text)  # every second one is a fenced block
    parts[::2] = [_LINK.sub(to_source, part) for part in parts[::2]]
    parts[1::2] = [_FILE_FENCE.sub(r"```{code-block} \1\n:caption: \2\n", part) for part in parts[1::2]]
    content[0] = "".join(parts)


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Lead the links to files to the pages with their source."""
    for node in doctree.findall(nodes.reference):
        uri = node.get("refuri", "")
        if not uri.startswith("source:"):
            continue
        path, _, name = uri.removeprefix("source:").partition("#")
        sources(app).add(path)
        fragment = ""
        if name:
            line = find_definition(ROOT / path, name)
            if line is None:
                log.warning("%s does not define %s", path, name, location=node)
            fragment = f"#L-{line}"
        node["refuri"] = app.builder.get_relative_uri(docname, f"source/{path}") + fragment
        node["internal"] = True


def sources(app: Sphinx) -> set[str]:
    """The files that pages written in this run link to."""
    found: set[str] = app.__dict__.setdefault("_roomkit_sources", set())
    return found


def find_definition(path: Path, name: str) -> int | None:
    """The line on which a Python file defines ``name``, ``Class.name`` or, in a test file, a method of any class."""
    if path.suffix != ".py":
        found = re.search(rf"^.*\b(?:class|function|const)\s+{re.escape(name)}\b", path.read_text(), re.MULTILINE)
        return path.read_text()[: found.start()].count("\n") + 1 if found else None
    scope: list[ast.stmt] = ast.parse(path.read_text()).body
    line: int | None = None
    for part in name.split("."):
        for node in scope:
            if part in _defined(node):
                line, scope = node.lineno, getattr(node, "body", [])
                break
        else:
            return None
    return line


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked to."""
    for path in sorted(sources(app)):
        text = (ROOT / path).read_text(encoding="utf-8")
        language = _LANGUAGES.get(Path(path).suffix, "text")
        code = app.builder.highlighter.highlight_block(  # type: ignore[attr-defined]
            text, language, linenos="inline", lineanchors="L", location=path
        )
        title = html.escape(path)
        yield (
            f"source/{path}",
            {"title": path, "body": f'<h1>{title}</h1><div class="source-page">{code}</div>'},
            "page.html",
        )


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where the reference's thing is defined (see sphinx.ext.linkcode); None: nowhere that can be shown."""
    try:
        thing = operator.attrgetter(info["fullname"])(importlib.import_module(info["module"]))
    except (AttributeError, ImportError):
        return None
    thing = inspect.unwrap(thing.fget if isinstance(thing, property) else thing)
    module, name = getattr(thing, "__module__", None) or "", getattr(thing, "__qualname__", "")
    if not module.startswith("roomkit") or not name:
        return None
    path = Path(inspect.getfile(sys.modules[module])).relative_to(ROOT)
    return None if find_definition(ROOT / path, name) is None else f"source:{path}#{name}"


def setup(app: Sphinx) -> dict[str, bool]:
    """See Sphinx."""
    app.add_lexer("json", LooseJson)
    for language in ("haproxy", "caddy"):  # which Pygments does not know
        app.add_lexer(language, TextLexer)
    app.connect("source-read", prepare)
    app.connect("doctree-resolved", resolve)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
