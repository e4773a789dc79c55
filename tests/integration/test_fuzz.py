"""The fuzzer, for a moment: `python -m tests.fuzz --seconds N` goes on for longer."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.errors import FormatError
from tests.fuzz.__main__ import _too_slow, fuzz, try_one
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.timeout(300, method="thread")  # the fuzzer needs SIGALRM for itself
SECONDS = 1.0
SEED = 20261123


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _too_slow)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_fuzz_finds_nothing(target: Target) -> None:
    count, wrong = fuzz(target, SECONDS, SEED)
    assert wrong is None
    assert count > 10


def test_fuzz_finds_what_is_wrong() -> None:
    def careless(raw: bytes) -> object:
        if raw[:1] == b"\xff":
            raise IndexError("as parsers do")
        raise FormatError("as they should")

    target = Target("careless", careless, lambda: [b"seed" * 4])
    assert try_one(target, b"fine") is None
    count, wrong = fuzz(target, 30, SEED)
    assert wrong is not None and "IndexError: as parsers do" in wrong
    kept = Path(wrong.rpartition("kept as ")[2].rstrip(")"))
    assert kept.read_bytes()[:1] == b"\xff"
    kept.unlink()
    assert count > 1
