"""Coverage-guided fuzzing of a target with atheris (the extra ``fuzz``): docs/limits.md says how to run it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def fuzz(name: str) -> None:
    """Run one target until the time is over (``-max_total_time=60``) or it raises; the flags are libFuzzer's."""
    import atheris

    sys.path.insert(0, str(Path(__file__).parents[2]))
    with atheris.instrument_imports(include=["roomkit.core", "roomkit.server", "h11", "wsproto"]):
        import targets
    target = targets.TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for n, seed in enumerate(targets.SEEDS[name]):
            (corpus / f"seed-{n}").write_bytes(seed)
        words = Path(folder) / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in targets.WORDS[name]))
        atheris.Setup([*sys.argv, f"-dict={words}", str(corpus)], target)
        atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)
