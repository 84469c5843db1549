"""``python -m tests.sharing.mutants``: breaks the real code on purpose, one promise at a time, and shows that a storm
over real instances and a real Valkey finds each.

A mutant is a text to be found exactly once in roomkit, in whichever module, and what stands there instead; instances
put it in place while they import (``instance.py --mutant``). Each is hunted in processes of its own, by storms of the
faults in which it shows, for a bounded time. Exit 1 when one survives, or when its old text is not there any more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from typing import NamedTuple

from tests.simulation.mutants import ROOT, Edit, _Finder
from tests.simulation.mutants import Mutant as Made

_SECONDS = 10.0  # of a storm
_LONGEST = 150.0  # seconds after which no other storm is begun for a mutant


class Mutant(NamedTuple):
    """A fault. ``changes``: what stands there, and what does instead. ``faults``: those in which it shows; ``ttl``: of
    the leases; ``stuck``: seconds without an acknowledgement that are too many.
    """

    name: str
    changes: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]
    ttl: float = 1.0
    stuck: float = 20.0


_PAST = ("freeze past the lease", "black hole past the lease", "cut off past the lease")

MUTANTS = (
    Mutant(
        "no fence: the store takes what anybody commits",
        (
            ("if l[1] ~= ARGV[2] or l[2] ~= ARGV[1] then return 1 end\nlocal revision", "local revision"),
            ("elseif revision ~= want - 1 then\n    return 2\nend\n", "end\n"),
        ),
        _PAST,
    ),
    Mutant(
        "tokens do not rise",
        (("local token = math.max(now, (tonumber(l[1] or 0)) + 1)", "local token = tonumber(l[1] or now)"),),
        ("kill", "drain"),
    ),
    Mutant(
        "no gap fill: what was not heard is never read from the log",
        (
            (
                "            copy.hole = False\n            self.fill(room)\n            return True\n",
                "            copy.hole = False\n",
            ),
        ),
        ("store: subscriptions lost", "store: other connections lost", "cut off"),
        stuck=8.0,
    ),
    Mutant(
        "no command ids: what is sent again has another one",
        (
            (
                '                self._tally.add("forwards_sent_again")\n',
                '                self._tally.add("forwards_sent_again")\n'
                "                del copy.waiting[waiting.letter.id]\n"
                "                waiting.letter = __import__('msgspec').structs.replace(\n"
                "                    waiting.letter, id=waiting.letter.id + 'x')\n"
                "                copy.waiting[waiting.letter.id] = waiting\n",
            ),
        ),
        ("freeze", "black hole", "kill, and another in a black hole"),
        ttl=2.0,
    ),
    Mutant(
        "the owner does not remember ids",
        (("            if command_id in journal.acted:\n", "            if False:\n"),),
        ("freeze", "black hole", "kill, and another in a black hole"),
        ttl=2.0,
    ),
    Mutant(
        "who takes over does not read which commands were carried out",
        (("            acted += [one for one in found.acted if one.last <= upto.seq]\n", ""),),
        ("kill, and another deaf",),
    ),
    Mutant(
        "delivered before it is stored",
        (
            (
                "        if step.record is not None:\n            return _commit_of(journal, room, step)\n",
                "        if step.record is not None:\n            room.release_step(step)\n"
                "            return _commit_of(journal, room, step)\n",
            ),
        ),
        ("cut off past the lease", "black hole past the lease"),
    ),
    Mutant(
        "a commit that was refused is told",
        (('            elif outcome == "committed":\n', "            elif outcome:\n"),),
        _PAST,
    ),
    Mutant(
        "what is queued is told when the room is lost",
        (
            (
                "            self.queue.drain(held=True)\n            for",
                "            self.release(*self.queue.drain(held=True))\n            for",
            ),
        ),
        _PAST,
    ),
    Mutant(
        "a step that has to be stored again is taken anew",
        (
            (
                "        if journal.step is None:\n            journal.step = room.take_step",
                "        if True:\n            journal.step = room.take_step",
            ),
        ),
        ("store: killed and restarted", "store: frozen", "cut off"),
    ),
    Mutant(
        "an answer is told before its events",
        (("            if letter.last > self._machine.seq:", "            if False:"),),
        ("kill, and another deaf", "deaf"),
        ttl=2.0,
    ),
    Mutant(
        "a resume leaves out the first event that was missed",
        (("        return self.latest(missing)\n", "        return self.latest(missing - 1)\n"),),
        ("people lose their connections", "kill"),
    ),
)


def edits_of(mutant: Mutant) -> Made:
    """Where its texts stand now.

    Raises:
        ValueError: one is not there, or more than once.
    """
    sources = {path: path.read_text() for path in sorted((ROOT / "roomkit").rglob("*.py"))}
    edits: list[Edit] = []
    for old, new in mutant.changes:
        found = [path for path, source in sources.items() for _ in range(source.count(old))]
        if len(found) != 1:
            raise ValueError(f"{mutant.name}: stands in roomkit {len(found)} times, not once: {old!r}")
        edits.append(Edit(str(found[0].relative_to(ROOT / "roomkit")), old, new))
    return Made(mutant.name, tuple(edits))


def infect(name: str) -> None:
    """In an instance, before anything of roomkit is imported."""
    loaded = [module for module in sys.modules if module.split(".")[0] == "roomkit"]
    assert not loaded, loaded
    made = edits_of(next(mutant for mutant in MUTANTS if mutant.name == name))
    sys.meta_path.insert(0, _Finder(made))  # type: ignore[arg-type]


class Hunt(NamedTuple):
    """How it went. ``found``: what was wrong; nothing: it survived. ``seed``: the last one."""

    found: str
    seed: int
    seconds: float


def hunt(mutant: Mutant, store: str, seed: int) -> Hunt:
    """Storm after storm until one finds it, or the time is up.

    Raises:
        RuntimeError: a storm did not come to its end.
    """
    began = time.monotonic()
    while True:
        command = [sys.executable, "-m", "tests.sharing.storms", "--mutant", mutant.name, "--seed", str(seed)]
        command += ["--store", store, "--seconds", str(_SECONDS)]
        command += ["--ttl", str(mutant.ttl), "--stuck", str(mutant.stuck)]
        command += [word for fault in mutant.faults for word in ("--only", fault)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
        wrong = re.findall(r"^  WRONG: (.*)$", done.stdout, re.MULTILINE)
        if bool(wrong) != (done.returncode == 1) or done.returncode not in (0, 1):
            raise RuntimeError(f"{mutant.name}, seed {seed}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        seconds = time.monotonic() - began
        if wrong or seconds > _LONGEST:
            return Hunt(wrong[0] if wrong else "", seed, seconds)
        seed += 1


def main(arguments: list[str] | None = None) -> int:
    """Hunt all, or those whose names contain ``--only``."""
    parser = argparse.ArgumentParser("python -m tests.sharing.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--store", default="one")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    for mutant in chosen:
        edits_of(mutant)
    survivors = 0
    print("| mutant | seed | seconds | found by |\n|---|---:|---:|---|", flush=True)
    for mutant in chosen:
        found, seed, seconds = hunt(mutant, options.store, options.seed)
        survivors += not found
        print(f"| {mutant.name} | {seed} | {seconds:.0f} | {found[:120] or 'SURVIVED'} |", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived", file=sys.stderr)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
