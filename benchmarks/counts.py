"""What is stable, counted and not timed, and compared with a stored baseline: ``python -m benchmarks.counts --help``.

Milliseconds belong to the machine and to what else it does. Calls, bytecode instructions, locks, system calls, bytes
and threads do not: when one of them rises, the code has changed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.result import Table, fill_marks, markdown_rows

ROOT = Path(__file__).resolve().parents[1]
BASELINE = Path(__file__).with_name("baseline.json")
PAGE = ROOT / "docs" / "performance.md"
_PATIENCE = 300.0  # seconds; some fifteen are usual

Groups = Mapping[str, Mapping[str, Mapping[str, float]]]  #: title -> subject -> kind -> number


class Kind(NamedTuple):
    """One kind of count.

    Attributes:
        title: over its column.
        share, slack: what it may rise before the check fails, as a share of the baseline and in all: the larger of the
            two. Nothing, for what is a property of the design; a little for what another patch version of Python or of
            a dependency changes.
        of_python: whether another minor version of Python counts otherwise.
    """

    title: str
    share: float = 0.0
    slack: float = 0.0
    of_python: bool = False

    def most(self, baseline: float) -> float:
        """The most that passes."""
        return baseline + max(baseline * self.share, self.slack)

    def least(self, baseline: float) -> float:
        """Less than this has fallen: time to store it."""
        return baseline - max(baseline * self.share, self.slack)


KINDS = {
    "calls": Kind("Python calls", share=0.02, slack=1, of_python=True),
    "c_calls": Kind("C calls", share=0.02, slack=1, of_python=True),
    "opcodes": Kind("instructions", share=0.02, slack=3, of_python=True),
    "locks": Kind("locks taken"),
    "polls": Kind("polls"),
    "reads": Kind("reads"),
    "writes": Kind("writes"),
    "other": Kind("other system calls"),
    "wire": Kind("bytes per delivery"),
    "wire_answer": Kind("bytes of the answer"),
    "visited": Kind("rooms visited"),
    "memory": Kind("bytes kept", share=0.03, slack=16, of_python=True),
    "blocks": Kind("blocks kept", share=0.03, slack=0.5, of_python=True),
    "objects": Kind("objects kept that are collected", share=0.02, slack=0.2, of_python=True),
    "threads": Kind("threads"),
}


def version() -> str:
    """This Python's section of the baseline."""
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}"


_ANY = "every Python"


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Count everything, in a fresh process: some fifteen seconds.

    Raises:
        RuntimeError: it failed, or took longer than some minutes; the text is what it said.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.counted"],
            cwd=ROOT,
            env={
                **{
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("ROOMKIT_", "PYTHON", "COVERAGE_"))
                },
                "PYTHONHASHSEED": "0",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"counting took longer than {_PATIENCE:g} s") from error
    if done.returncode:
        raise RuntimeError(f"counting failed:\n{done.stderr}")
    groups: dict[str, dict[str, dict[str, float]]] = json.loads(done.stdout)
    return groups


def packages() -> dict[str, str]:
    """The versions of what roomkit's own counts depend on."""
    return {name: importlib.metadata.version(name) for name in ("h11", "msgspec", "readerwriterlock", "wsproto")}


# The baseline: {"packages": {section: {name: version}}, "groups": {title: [subject]},
# "counts": {section: {subject: {kind: number}}}}, where a section is a version of Python or every one.


def _subjects(groups: Groups) -> dict[str, Mapping[str, float]]:
    return {subject: kinds for subjects in groups.values() for subject, kinds in subjects.items()}


def _section(kind: str) -> str:
    return version() if KINDS[kind].of_python else _ANY


def store(groups: Groups, before: Mapping[str, Any]) -> dict[str, Any]:
    """The baseline with these counts instead of this Python's and those of every Python; other versions' stay."""
    sections = {name: section for name, section in before.get("counts", {}).items() if name not in (version(), _ANY)}
    for name in (_ANY, version()):
        mine = {
            subject: {kind: number for kind, number in kinds.items() if _section(kind) == name}
            for subject, kinds in _subjects(groups).items()
        }
        sections[name] = {subject: kinds for subject, kinds in mine.items() if kinds}
    return {
        "packages": {**before.get("packages", {}), version(): packages()},
        "groups": {title: list(subjects) for title, subjects in groups.items()},
        "counts": {name: sections[name] for name in sorted(sections)},
    }


def load(path: Path = BASELINE) -> dict[str, Any]:
    """What is stored; empty where nothing is."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored


def stored_groups(baseline: Mapping[str, Any], python: str | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """What :func:`measure` found when it was stored; of this Python, or of another section."""
    parts = [baseline["counts"].get(name, {}) for name in (_ANY, python or version())]
    return {
        title: {subject: {**parts[0].get(subject, {}), **parts[1].get(subject, {})} for subject in subjects}
        for title, subjects in baseline["groups"].items()
    }


class Change(NamedTuple):
    """A count that is not what the baseline says. None: it is not there."""

    subject: str
    kind: str
    baseline: float | None
    now: float | None

    @property
    def worse(self) -> bool:
        """Whether the check fails over it: it rose, nobody knows what it should be, or it is not counted any more."""
        return self.baseline is None or self.now is None or self.now > self.baseline


class Comparison(NamedTuple):
    """What :func:`compare` found. ``unknown``: nothing is stored for this Python, and only the rest was compared."""

    changes: list[Change]
    unknown: bool

    @property
    def worse(self) -> list[Change]:
        """Over these the check fails."""
        return [change for change in self.changes if change.worse]

    @property
    def better(self) -> list[Change]:
        """These have fallen."""
        return [change for change in self.changes if not change.worse]

    def tables(self) -> str:
        """What differs, for people; empty when nothing does."""
        parts = []
        for title, changes in (("Risen", self.worse), ("Fallen", self.better)):
            if changes:
                rows = [_row(change) for change in changes]
                headers = ["what", "counted in", "baseline", "now", "change", "may rise to"]
                parts.append(f"{title}:\n\n{markdown_rows(Table(title, headers, rows))}\n")
        return "\n".join(parts)


def _row(change: Change) -> list[object]:
    kind = KINDS[change.kind]
    if change.baseline is None or change.now is None:
        missing = "not stored" if change.baseline is None else "not counted"
        return [change.subject, kind.title, *(_exact(n) for n in (change.baseline, change.now)), missing, "-"]
    share = f"{100 * (change.now / change.baseline - 1):+.1f} %" if change.baseline else "-"
    numbers = [_exact(change.baseline), _exact(change.now), share, _exact(kind.most(change.baseline))]
    return [change.subject, kind.title, *numbers]


def _exact(number: float | None) -> str:
    return "-" if number is None else f"{number:,.3f}".rstrip("0").rstrip(".")


def compare(groups: Groups, baseline: Mapping[str, Any]) -> Comparison:
    """Every count with what is stored."""
    sections = baseline.get("counts", {})
    measured = _subjects(groups)
    changes = []
    for name in (_ANY, version()):
        if name not in sections:
            continue
        known = sections[name]
        mine = {(s, k) for s, kinds in measured.items() for k in kinds if _section(k) == name}
        for subject, kind in sorted(mine | {(s, k) for s, kinds in known.items() for k in kinds}):
            was, now = known.get(subject, {}).get(kind), measured.get(subject, {}).get(kind)
            if was is None or now is None or not KINDS[kind].least(was) <= now <= KINDS[kind].most(was):
                changes.append(Change(subject, kind, was, now))
    return Comparison(changes, version() not in sections)


# What was asked for, whatever the baseline says.


def broken_limits(groups: Groups) -> list[str]:
    """Sentences about what is past the limits that the design sets."""
    of = _subjects(groups)
    read, locked = of["get_state"], of["reading (takes the lock)"]
    few, many = (of[f"sweep: 100 due among {rooms} rooms"] for rooms in ("1,000", "20,000"))
    threads = {
        name: kinds["threads"] for name, kinds in of.items() if name.startswith("server, 1") or "no conn" in name
    }
    idle = of["a room of 4, idle"]["memory"]
    delivery = of["each further delivery of a message"]
    wrong = {
        f"a state read takes {read['locks']:g} locks, not none": read["locks"] > 0,
        f"a state read is {read['opcodes']:g} instructions, more than a tenth of one with the lock": (
            read["opcodes"] > locked["opcodes"] / 10
        ),
        f"an idle room of 4 takes {idle:,.0f} bytes, more than 8,192": idle > 8192,
        "an idle room has a thread": of["300 idle rooms of 4"]["threads"] > 0,
        "rooms that are gone leave objects": of["a room of 4 that is gone"]["objects"] > 0.01,
        f"a sweep visits {many['visited']:g} rooms of which 100 are due": many["visited"] > 100,
        "a sweep costs by the rooms that there are": many["opcodes"] > 1.2 * few["opcodes"],
        f"threads grow with connections or rooms: {threads}": len(set(threads.values())) > 1,
        "a stopped server leaves threads": of["server, stopped"]["threads"] > 0,
        f"a delivery takes {delivery['writes']:g} writes": delivery["writes"] > 1,
        f"a further delivery takes {delivery['locks']:g} locks": delivery["locks"] > 0,
    }
    return [sentence for sentence, is_wrong in wrong.items() if is_wrong]


# The command.


def on_page(groups: Groups) -> str:
    """The counts as they stand on the page, between the marks."""
    return f"With {version()}.\n\n{tables(groups)}"


def tables(groups: Groups) -> str:
    """All counts as Markdown."""
    parts = []
    for title, subjects in groups.items():
        kinds = [kind for kind in KINDS if any(kind in of for of in subjects.values())]
        rows = [[subject, *(_exact(of.get(kind)) for kind in kinds)] for subject, of in subjects.items()]
        parts.append(f"**{title}**\n\n{markdown_rows(Table(title, ['', *(KINDS[k].title for k in kinds)], rows))}\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a count has risen or a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--write", action="store_true", help="store what is counted, in the page as well")
    parser.add_argument("--check", action="store_true", help="compare with what is stored; 1 when something has risen")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help="another one, without a page")
    options = parser.parse_args(arguments)
    before = load(options.baseline)
    groups = measure()
    broken = broken_limits(groups)
    if options.check:
        status = report(compare(groups, before), before)
    else:
        print(tables(groups))
        status = 0
    for sentence in broken:
        print(f"Limit: {sentence}.")
    if options.write:
        options.baseline.write_text(json.dumps(store(groups, before), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {options.baseline}", file=sys.stderr)
        if options.baseline == BASELINE:
            PAGE.write_text(fill_marks(PAGE.read_text(encoding="utf-8"), "counts", on_page(groups)), encoding="utf-8")
            print(f"wrote {PAGE}", file=sys.stderr)
    return 1 if broken and options.check else status


def report(found: Comparison, baseline: Mapping[str, Any]) -> int:
    """Print what a comparison found; the exit status."""
    print(found.tables() or "Every count is as stored.")
    if found.unknown:
        print(f"Nothing is stored for {version()}; compared was what is the same in {_ANY}.")
    then = baseline.get("packages", {}).get(version(), {})
    others = [f"{name} {v} (stored with {then[name]})" for name, v in packages().items() if then.get(name, v) != v]
    if others and found.changes:
        print(f"Other versions than when it was stored: {', '.join(others)}.")
    if found.worse:
        print("If this is the price of something worth it: python -m benchmarks.counts --write")
        return 1
    if found.better:
        print("Some counts have fallen. Store them, so that they stay there: python -m benchmarks.counts --write")
    return 0


if __name__ == "__main__":
    sys.exit(main())
