"""The site builds without a warning, every link in it leads somewhere, and nothing in it comes from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support.markdown import DOCS, ROOT
from support.needs import need_package

pytestmark = pytest.mark.timeout(600)  # the build takes a minute on a machine that has nothing else to do


class Page(HTMLParser):
    """The ids of a page, where it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(values["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in values:
            self.loads.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The site, built as CI builds it; its pages by path."""
    for module in ("sphinx", "myst_parser", "furo"):
        need_package(module)
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, *"-m sphinx -W --keep-going -q -b html -d".split()]  # noqa: SIM905
    built = subprocess.run(
        [*build, f"{out}/trees", "docs", f"{out}/html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return {path: Page(path) for path in sorted((out / "html").rglob("*.html"))}


def test_every_page_is_in_the_site(site: dict[Path, Page]) -> None:
    """A page for each Markdown file; that all can be reached by the menu is checked by the build."""
    out = next(path.parent for path in site if path.name == "search.html")
    for source in DOCS.rglob("*.md"):
        assert out / source.relative_to(DOCS).with_suffix(".html") in site


def test_links_and_anchors_lead_somewhere(site: dict[Path, Page]) -> None:
    """Every link within the site: the file is there, and the anchor in it."""
    wrong = []
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in site and anchor not in site[target].ids | {"top"}):
                wrong.append(f"{path.name}: {link}")
    assert not wrong, sorted(set(wrong))


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    """No fonts, scripts or pictures of other hosts: the site works without a network and tells nobody who reads it."""
    for path, page in site.items():
        for address in page.loads:
            parts = urlsplit(address)
            assert not parts.netloc, f"{path.name} loads {address}"
            assert parts.scheme == "data" or (path.parent / unquote(parts.path)).exists(), f"{path.name}: {address}"
    for style in next(iter(site)).parent.rglob("*.css"):
        assert "@import" not in style.read_text(encoding="utf-8"), style


def test_links_to_the_source_lead_to_the_definition(site: dict[Path, Page]) -> None:
    """A link to a name in a file ends at the line that defines it (that the name is there is checked by the build)."""
    page = next(page for path, page in site.items() if path.name == "disasters.html")
    link = next(link for link in page.links if "roomkit/core/lifecycle.py" in link)
    target, _, anchor = link.partition("#")
    line = int(anchor.removeprefix("L-"))
    assert (page.path.parent / target).exists()
    assert (ROOT / "roomkit/core/lifecycle.py").read_text().splitlines()[line - 1].startswith("GAME = Lifecycle(")
