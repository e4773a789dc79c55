"""What the kernel's log says of crashes that were not handed over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.losses import find_loss, parse_record


def test_parse_record_takes_the_kernels_own_words() -> None:
    record = parse_record(b"4,1234,98765,-;coredump: 7(x): y\n SUBSYSTEM=z\n")
    assert record is not None
    assert record == (1234, 98_765_000, b"coredump: 7(x): y")


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"4,1,2", b"12,1,2,-;written by a program", b"a,1,2,-;x", b"4,1;x"]
)
def test_parse_record_anything_else_is_none(raw: bytes) -> None:
    assert parse_record(raw) is None


@pytest.mark.parametrize(
    ("text", "pid", "comm", "words"),
    [
        (
            b"coredump: 42(bash): over core_pipe_limit, skipping core dump",
            42,
            b"bash",
            "pipe_limit",
        ),
        (b"Pid 42(bash) over core_pipe_limit", 42, b"bash", "pipe_limit"),
        (b"coredump: 42(bash): RLIMIT_CORE is set to 1, aborting core", 42, b"bash", "RLIMIT_CORE"),
        (b"Process 42(bash) has RLIMIT_CORE set to 1", 42, b"bash", "RLIMIT_CORE"),
        (b"coredump: 1(a): |/no/such pipe failed", 1, b"a", "could not run"),
        (b"coredump: 1(a): Coredump socket connection /x failed -2", 1, b"a", "nothing listened"),
        (
            b"coredump: 9(x): over core_pipe_limit): over core_pipe_limit, skipping core dump",
            9,
            b"x): over core_pipe_limit",
            "pipe_limit",
        ),
    ],
)
def test_find_loss_each_wording(text: bytes, pid: int, comm: bytes, words: str) -> None:
    loss = find_loss(text)
    assert loss is not None
    assert (loss.pid, loss.comm, loss.count) == (pid, comm, 1)
    assert words in loss.reason


def test_find_loss_suppressed_lines_are_counted() -> None:
    loss = find_loss(b"coredump_pipe: 974 callbacks suppressed")
    assert loss is not None
    assert (loss.count, loss.pid) == (974, None)


@pytest.mark.parametrize(
    "text",
    [
        b"bash[1]: segfault at 0",
        b"x coredump: 42(bash): over core_pipe_limit",
        b"other: 5 callbacks suppressed",
    ],
)
def test_find_loss_what_is_none(text: bytes) -> None:
    assert find_loss(text) is None


@given(st.binary())
def test_hostile_text_raises_nothing(raw: bytes) -> None:
    parse_record(raw)
    find_loss(raw)
