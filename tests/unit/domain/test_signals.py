import signal

import pytest

from crashd.domain.signals import CORE_SIGNALS, describe, signal_name, title


def test_signal_name_is_the_c_library_s() -> None:
    for number in range(1, 32):
        assert signal_name(number) == signal.Signals(number).name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (34, "SIGRTMIN"),
        (35, "SIGRTMIN+1"),
        (64, "SIGRTMIN+30"),
        (0, "0"),
        (-1, "-1"),
        (32, "32"),
        (33, "33"),
        (65, "65"),
    ],
)
def test_signal_name_beyond_the_classic_ones(number: int, name: str) -> None:
    assert signal_name(number) == name


def test_core_signals_are_those_of_signal_7() -> None:
    names = {signal_name(number) for number in CORE_SIGNALS}
    assert names == {
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGSEGV",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGSYS",
    }


@pytest.mark.parametrize(
    ("number", "code", "address", "pid", "uid", "words"),
    [
        (None, 1, None, None, None, None),
        (11, None, 16, None, None, None),
        (11, 1, 0, None, None, "NULL pointer dereference at 0x0 (address not mapped)"),
        (11, 1, 0xFFFF, None, None, "NULL pointer dereference at 0xffff (address not mapped)"),
        (11, 2, 0x10000, None, None, "no permission for the mapping at 0x10000"),
        (11, 1, 0x10000, None, None, "address not mapped at 0x10000"),
        (11, 4, 16, None, None, "access denied by memory protection key at 0x10"),
        (11, 1, None, None, None, "address not mapped"),
        (11, 128, None, None, None, "general protection fault (non-canonical or misused address)"),
        (5, 128, None, None, None, "raised by the kernel"),
        (11, 99, None, None, None, "si_code 99"),
        (7, 2, 0x7000, None, None, "page not there (file truncated, or out of memory) at 0x7000"),
        (8, 1, 0x400000, None, None, "integer division by zero"),
        (4, 2, 0x400000, None, None, "illegal operand"),
        (31, 1, 0x400000, None, None, "system call refused by seccomp"),
        (11, 0, None, 77, 1000, "sent by pid 77 (uid 1000)"),
        (6, -6, None, 77, 0, "sent by pid 77 (uid 0)"),
        (6, -6, None, 77, None, "sent by pid 77"),
        (6, 0, None, 0, 0, "sent by another process"),
        (6, -2, None, None, None, "sent by another process"),
    ],
)
def test_describe_signal_is_put_in_words(
    number: int | None,
    code: int | None,
    address: int | None,
    pid: int | None,
    uid: int | None,
    words: str | None,
) -> None:
    assert describe(number, code, address, pid, uid) == words


@pytest.mark.parametrize(
    ("number", "comm", "words", "line"),
    [
        (11, "nginx", None, "SIGSEGV in nginx"),
        (11, "nginx", "why", "SIGSEGV in nginx: why"),
        (None, "", None, "crash in ?"),
    ],
)
def test_title_is_one_line(number: int | None, comm: str, words: str | None, line: str) -> None:
    assert title(number, comm, words) == line
