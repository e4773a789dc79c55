import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.procfs import (
    RLIM_INFINITY,
    Status,
    parse_cmdline,
    parse_core_limit,
    parse_environ,
    parse_status,
)

STATUS = b"""Name:\tngi\\nx\\\\ 1
Umask:\t0022
State:\tS (sleeping)
Tgid:\t4242
Ngid:\t0
Pid:\t4243
PPid:\t1
TracerPid:\t0
Uid:\t1000\t1001\t1002\t1003
Gid:\t50\t51\t52\t53
FDSize:\t64
Groups:\t4 24 27
NStgid:\t4242\t17\t1
NSpid:\t4243\t18\t2
NSpgid:\t4242\t17\t1
Kthread:\t0
VmPeak:\t    9000 kB
VmRSS:\t    1024 kB
CoreDumping:\t1
THP_enabled:\t1
Threads:\t33
SigQ:\t0/15000
Seccomp:\t2
Seccomp_filters:\t1
Speculation_Store_Bypass:\tvulnerable
"""

LIMITS = b"""Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max core file size        %s            unlimited            bytes
Max resident set          unlimited            unlimited            bytes
"""


def test_parse_status_kernels_text_is_read() -> None:
    assert parse_status(STATUS) == Status(
        name=b"ngi\nx\\ 1",
        tgid=4242,
        uids=(1000, 1001, 1002, 1003),
        gids=(50, 51, 52, 53),
        ns_tgid=(4242, 17, 1),
        core_dumping=True,
        vm_rss_bytes=1024 * 1024,
        threads=33,
        seccomp=2,
        groups=frozenset({4, 24, 27}),
    )


def test_parse_status_truncated_at_every_length_gives_whole_values_or_none() -> None:
    whole = parse_status(STATUS)
    assert parse_status(STATUS[:-1]) == whole  # the last line is none that counts
    for size in range(len(STATUS)):
        status = parse_status(STATUS[:size])
        for name in ("tgid", "uids", "gids", "vm_rss_bytes", "threads", "seccomp"):
            assert getattr(status, name) in (None, getattr(whole, name)), size
        assert status.name in (b"", whole.name)
        assert status.ns_tgid in ((), whole.ns_tgid)


def test_parse_status_forged_name_does_not_win() -> None:
    # A kernel that escapes no newline would show just this.
    forged = b"Name:\tx\nUid:\t0\t0\t0\t0\nTgid:\t1\nCoreDumping:\t0\n"
    status = parse_status(forged + STATUS.split(b"\n", 1)[1])
    assert status.uids == (1000, 1001, 1002, 1003)
    assert status.tgid == 4242
    assert status.core_dumping


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"a\\nb", b"a\nb"),
        (b"a\\\\nb", b"a\\nb"),
        (b"a\\\\\\nb", b"a\\\nb"),
        (b"a: b", b"a: b"),
        (b" lead", b" lead"),
        (b"\ttab", b"\ttab"),
        (b"\xff\x1b[m", b"\xff\x1b[m"),
        (b"", b""),
    ],
)
def test_parse_status_name_is_unescaped(written: bytes, name: bytes) -> None:
    assert parse_status(b"Name:\t" + written + b"\nTgid:\t1\n").name == name


def test_parse_status_old_kernel_uses_ns_pid() -> None:
    assert parse_status(b"Name:\tx\nNSpid:\t9\t3\n").ns_tgid == (9, 3)
    assert parse_status(b"Name:\tx\nTgid:\t9\n").ns_tgid == ()


@pytest.mark.parametrize(
    "line",
    [
        b"Uid:\t1\t2\t3",
        b"Uid:\t1\t2\t3\t4\t5",
        b"Uid:\t1\t2\t3\t-4",
        b"Uid:\t1\t2\t3\t4294967296",
        b"Uid:\t" + b"9" * 5000 + b"\t2\t3\t4",
        b"Uid:\tx",
        b"Uid:",
        b"Uid",
    ],
)
def test_parse_status_bad_uids_are_none(line: bytes) -> None:
    assert parse_status(b"Name:\tx\n" + line + b"\nTgid:\t7\n") == Status(name=b"x", tgid=7)


def test_parse_status_not_dumping_is_false() -> None:
    assert not parse_status(b"Name:\tx\nCoreDumping:\t0\n").core_dumping
    assert not parse_status(b"Name:\tx\n").core_dumping


@given(st.binary(max_size=200))
def test_parsers_any_bytes_raise_nothing(raw: bytes) -> None:
    for head in (b"", b"Uid:\t", b"NStgid:\t", b"VmRSS:"):
        parse_status(head + raw + b"\n")
    parse_core_limit(b"Max core file size " + raw)
    parse_cmdline(raw)
    parse_environ(raw)


def test_parse_status_long_list_is_bounded() -> None:
    assert parse_status(b"NSpid:" + b" 1" * 100_000 + b"\n").ns_tgid == (1,) * 33


@pytest.mark.parametrize(
    ("raw", "argv"),
    [
        (b"", ()),
        (b"\0", (b"",)),
        (b"a\0b c\0", (b"a", b"b c")),
        (b"a\0\0", (b"a", b"")),
        (b"nginx: worker process", (b"nginx: worker process",)),
        (b"a\0b", (b"a", b"b")),
        (b"\xff\n\0--x\0", (b"\xff\n", b"--x")),
    ],
)
def test_parse_cmdline_arguments_are_split(raw: bytes, argv: tuple[bytes, ...]) -> None:
    assert parse_cmdline(raw) == argv


@pytest.mark.parametrize(
    ("raw", "environ"),
    [
        (b"", ()),
        (b"\0\0\0", ()),
        (b"A=1\0B=\0", (b"A=1", b"B=")),
        (b"A=1\0\0\0B=2", (b"A=1", b"B=2")),
        (b"A=x\nUID=0\0A=2\0no equals\0", (b"A=x\nUID=0", b"A=2", b"no equals")),
    ],
)
def test_parse_environ_entries_are_split(raw: bytes, environ: tuple[bytes, ...]) -> None:
    assert parse_environ(raw) == environ


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (b"0        ", 0),
        (b"1        ", 1),
        (b"65536    ", 65536),
        (b"unlimited", RLIM_INFINITY),
        (b"18446744073709551614", 2**64 - 2),
        (b"-1       ", None),
        (b"1x       ", None),
        (b"9" * 30, None),
    ],
)
def test_parse_core_limit_soft_limit_is_read(value: bytes, limit: int | None) -> None:
    assert parse_core_limit(LIMITS % value) == limit


def test_parse_core_limit_no_such_line_is_none() -> None:
    assert parse_core_limit(b"") is None
    assert parse_core_limit((LIMITS % b"0").replace(b"core file", b"file")) is None
    assert parse_core_limit(b"xMax core file size   0   0 bytes\n") is None
