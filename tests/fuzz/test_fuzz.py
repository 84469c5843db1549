"""The fuzz targets with the same examples in every run; and every crash that fuzzing has found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import targets
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """The servers of a test end with it."""
    yield
    targets.forget()


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in targets.SEEDS.items() for seed in seeds])
def test_the_seeds(name: str, seed: bytes) -> None:
    """Nothing is wrong with what the fuzzers begin with."""
    targets.TARGETS[name](seed)


def pieces(name: str) -> st.SearchStrategy[bytes]:
    """Seeds cut into pieces and put together anew, with words and noise between them."""
    cuts = st.builds(
        lambda seed, a, b: seed[min(a, b) : max(a, b)], st.sampled_from(targets.SEEDS[name]), *[st.integers(0, 200)] * 2
    )
    part = st.one_of(
        cuts, st.sampled_from(targets.SEEDS[name]), st.sampled_from(targets.WORDS[name]), st.binary(max_size=9)
    )
    return st.lists(part, max_size=6).map(b"".join)


@settings(max_examples=300)
@given(st.sampled_from([b"\0", b"\1", b"\7", b"\x40"]), pieces("handshake"))
def test_handshake_bytes(size: bytes, data: bytes) -> None:
    """See targets.handshake."""
    targets.handshake(size + data)


@settings(max_examples=300)
@given(st.sampled_from([b"\0", b"\1", b"\7", b"\x40"]), st.sampled_from([b"\0", b"\1"]), pieces("frames"))
def test_frame_bytes(size: bytes, repair: bytes, data: bytes) -> None:
    """See targets.frames."""
    targets.frames(size + repair + data)


@settings(max_examples=400)
@given(pieces("messages"))
def test_message_bytes(data: bytes) -> None:
    """See targets.messages."""
    targets.messages(data)


def test_the_targets_see_what_is_wrong() -> None:
    """They are no checks that let everything pass: half an answer, a masked frame, NaN in a message, a second close."""
    for bad in (
        b"\x81",
        b"\x81\x84\0\0\0\0abcd",
        b"\x81\x03NaN",
        b"\x88\0\x88\0",
        b"\xc1\x02{}",
        b"\x82\x01x",
        b"\x81\x7f",
    ):
        with pytest.raises((AssertionError, ValueError, IndexError)):
            targets.unmasked_frames(bad)
    stage = targets.offline()
    wire = stage.connect()
    with pytest.raises(AssertionError):
        stage.end(targets.Wire())  # the other connection is still there
    stage.end(wire)
