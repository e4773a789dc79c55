"""Lines of the kernel's log in every form that it is written down in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kernellog.printk import LINE_MAX, LOG_MAX, LogLine, is_boot, parse_lines

NOV_23 = 1795431600.0  # 2026-11-23T11:00:00Z


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[   12.345678] usb 1-1: new", ("usb 1-1: new", 12.345678, None, None, None)),
        (b"[   12.345678]  f+0x1/0x2", (" f+0x1/0x2", 12.345678, None, None, None)),
        (b"[   12.345678][  T123] x", ("x", 12.345678, None, "T123", None)),
        (b"[   12.345678][    C0]  y", (" y", 12.345678, None, "C0", None)),
        (b"[   12.345678] [      T1] x", ("x", 12.345678, None, "T1", None)),
        (b"[12345.345678 <    0.000012>] x", ("x", 12345.345678, None, None, None)),
        (b"<4>[   12.345678] x", ("x", 12.345678, 4, None, None)),
        (b"<0>x", ("x", None, 0, None, None)),
        (b"kern  :warn  : [   12.345678] x", ("x", 12.345678, 4, None, None)),
        (b"[Mon Nov 23 11:00:00 2026] x", ("x", NOV_23, None, None, None)),
        (b"[Mon Nov  3 11:00:00 2026] x", ("x", NOV_23 - 20 * 86400, None, None, None)),
        (b"2026-11-23T11:00:00,123456+00:00 x: y", ("x: y", NOV_23, None, None, None)),
        (b"6,1234,5678,-;x", ("x", 0.005678, 6, None, 1234)),
        (b"6,1234,5678,-,caller=T99;x", ("x", 0.005678, 6, "T99", 1234)),
        (b"6,1234,5678,c,ncfrag=0/10;x", ("x", 0.005678, 6, None, 1234)),
        (b"Nov 23 11:00:00 host kernel: x", ("x", None, None, None, None)),
        (b"Nov  3 11:00:00 host kernel:  f+0x1/0x2", (" f+0x1/0x2", None, None, None, None)),
        (b"Nov 23 11:00:00 host kernel: [   12.345678] x", ("x", 12.345678, None, None, None)),
        (b"2026-11-23T11:00:00.5+00:00 host kernel: x", ("x", NOV_23, None, None, None)),
        (b"[   12.345678] host kernel: x", ("x", 12.345678, None, None, None)),
        (b"host login: [   12.345678] x", ("x", 12.345678, None, None, None)),
        (b"** 7 printk messages dropped ** [   12.345678] x", ("x", 12.345678, None, None, None)),
        (b"[   12.345678] a\tb\0\r\r", ("a b", 12.345678, None, None, None)),
        (
            b"\x1b[32m[   12.345678] \x1b[0m\x1b[33musb\x1b[0m: x",
            ("usb: x", 12.345678, *[None] * 3),
        ),
        (b"[   12.345678] \x07\xff\xe2\x80\xae", ("\\x07\\xff\\u202e", 12.345678, *[None] * 3)),
        (b"[Mon Nov 99 11:00:00 2026] x", ("x", None, None, None, None)),
        (b"[ not a stamp ] x", ("[ not a stamp ] x", None, None, None, None)),
        (b"Call Trace:", ("Call Trace:", None, None, None, None)),
    ],
)
def test_parse_lines_each_form_is_understood(raw: bytes, expected: tuple[object, ...]) -> None:
    (line,) = parse_lines(b"\n" + raw + b"\r\n\n")
    assert (line.text, line.time_s, line.level, line.caller, line.seq) == expected
    assert line.offset == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"12,1,2,-;written by a program",
        b"<30>systemd[1]: x",
        b"Nov 23 11:00:00 host systemd[1]: BUG: unable to handle",
        b"2026-11-23T11:00:00+01:00 host logger: kernel BUG at a.c:1!",
        b"daemon:info  : [   12.345678] systemd[1]: x",
        b"",
        b" \t ",
    ],
)
def test_parse_lines_of_a_program_are_left_out(raw: bytes) -> None:
    assert parse_lines(raw) == []


def test_parse_lines_keys_of_a_record_are_no_lines() -> None:
    log = b"6,1,2,-;usb\n SUBSYSTEM=usb\n DEVICE=+usb:1-1\n4,2,3,-; f+0x1/0x2\n"
    assert [line.text for line in parse_lines(log)] == ["usb", " f+0x1/0x2"]


def stamped(*times: float) -> bytes:
    return b"".join(b"[%12.6f] at %d\n" % (time, time) for time in times)


def times_of(lines: list[LogLine]) -> list[float | None]:
    return [line.time_s for line in lines]


def test_parse_lines_rotated_ring_buffer_is_put_in_order() -> None:
    log = stamped(500, 501, 502) + stamped(100, 101, 499)
    assert times_of(parse_lines(log)) == [100, 101, 499, 500, 501, 502]


@pytest.mark.parametrize(
    "log",
    [
        stamped(100, 101, 200) + b"[    0.000000] Linux version 6.1.0\n" + stamped(1, 2, 50),
        stamped(0, 10, 90) + stamped(0, 5, 50),
        stamped(10, 10.5) + stamped(10.2, 10.4, 11),
        stamped(300, 400) + stamped(100, 200) + stamped(1, 2),
    ],
    ids=["second boot", "two boots without banners", "cpus out of step", "falls twice"],
)
def test_parse_lines_that_did_not_rotate_stay(log: bytes) -> None:
    lines = parse_lines(log)
    assert [line.offset for line in lines] == sorted(line.offset for line in lines)


def test_is_boot_takes_the_banner_alone() -> None:
    lines = parse_lines(b"[    0.000000] Linux version 6.1.0 (x)\n[ 1.000000] Linux version x\n")
    assert [is_boot(line) for line in lines] == [True, False]


def test_parse_lines_more_than_the_limit_keeps_head_and_tail() -> None:
    lines = parse_lines(b"".join(b"line %d\n" % n for n in range(1000)), lines_max=80)
    assert [line.text for line in lines] == [f"line {n}" for n in (*range(10), *range(930, 1000))]


def test_parse_lines_of_a_large_log_keep_head_and_tail() -> None:
    log = b"first\n" + (b"x" * 99 + b"\n") * (2 * LOG_MAX // 100) + b"last\n"
    lines = parse_lines(log)
    assert (lines[0].text, lines[-1].text, lines[-1].offset) == ("first", "last", len(log) - 5)
    assert sum(len(line.text) + 1 for line in lines) <= LOG_MAX


def test_parse_lines_a_long_line_is_cut() -> None:
    lines = parse_lines(b"a" * 3 * LINE_MAX + b"\nb")
    assert [len(line.text) for line in lines] == [LINE_MAX, 1]


@given(st.binary(max_size=400))
def test_parse_lines_of_any_bytes_are_printable(raw: bytes) -> None:
    for line in parse_lines(raw):
        assert line.text.isprintable() or "\\" in line.text or not line.text.isascii()
        assert "\n" not in line.text
        assert "\x1b" not in line.text
        assert 0 <= line.offset < len(raw)


PANIC = "Kernel panic - not syncing: no"


@pytest.mark.parametrize(
    "line",
    [
        "/init: 12: .: [  271.403835] " + PANIC,
        "[  OK  ] Reached target Shutdown.[  271.403835] " + PANIC,
        "their words[  271.403835][    T1] " + PANIC,
        "\x1b[0;32m* \x1b[0mStarting x...[  271.403835] " + PANIC,
    ],
)
def test_parse_lines_stamp_behind_the_words_of_others_is_found(line: str) -> None:
    log = f"{line}\n[  271.410000] CPU: 7 PID: 1 Comm: init\n"
    assert parse_lines(log.encode())[0].text == PANIC
    assert parse_lines(log.encode())[0].time_s == 271.403835


@pytest.mark.parametrize(
    "log",
    [
        "[  271.000001] usb 1-1: Product: x[    1.000000] " + PANIC,
        "<4>usb 1-1: Product: x[    1.000000] " + PANIC,
        "Nov 23 11:00:00 host kernel: usb 1-1: Product: x[    1.000000] " + PANIC,
        "usb 1-1: Product: x[    1.000000] " + PANIC + "\nusb 1-1: a kernel without printk.time",
        "4,1,2,-;usb 1-1: Product: x[    1.000000] " + PANIC,
    ],
)
def test_parse_lines_stamp_in_the_kernels_own_words_is_none(log: str) -> None:
    assert [line.text for line in parse_lines(log.encode()) if line.text == PANIC] == []
