import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.units import (
    DURATION_MAX_NS,
    SIZE_MAX,
    Amount,
    format_duration,
    format_size,
    parse_bytes,
    parse_duration,
    parse_size,
)
from crashd.errors import UsageError

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (512, 512),
        (SIZE_MAX, SIZE_MAX),
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        (" 1K ", 1024),
        ("1k", 1024),
        ("1 K", 1024),
        ("1KB", 1024),
        ("1kB", 1024),
        ("1KiB", 1024),
        ("64M", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("0.1K", 102),
        ("1.999999999K", 2047),
        (str(SIZE_MAX), SIZE_MAX),
    ],
)
def test_parse_bytes_size_is_bytes(value: str | int, size: int) -> None:
    assert parse_bytes(value) == size
    assert parse_size(value) == Amount(size_bytes=size)


@pytest.mark.parametrize(
    "value",
    [
        -1,
        SIZE_MAX + 1,
        pytest.param(1 << 100_000, id="huge"),
        True,
        "",
        " ",
        "-1",
        "+1",
        "M",
        "1.5",
        "1.5B",
        "1.",
        ".5M",
        "1,5M",
        "1e6",
        "0x10",
        "1Q",
        "1iB",
        "1KBB",
        "1  K",
        "1M 1K",
        "8E",
        "٣M",
        "9" * 20,
        "9" * 5000,
        "1.0000000000K",
        "infinity",
        "10%",
    ],
)
def test_parse_bytes_no_size_is_refused(value: str | int) -> None:
    with pytest.raises(UsageError, match="is not a size") as e:
        parse_bytes(value)
    assert len(str(e.value)) < 200


@pytest.mark.parametrize(
    ("text", "of_a_million"),
    [("0%", 0), ("10%", 100_000), ("12.5 %", 125_000), ("0.001%", 10), ("100%", 1_000_000)],
)
def test_parse_size_percent_is_a_share(text: str, of_a_million: int) -> None:
    assert parse_size(text).of(1_000_000) == of_a_million


@pytest.mark.parametrize("text", ["%", "-1%", "100.001%", "101%", "999%", "1.0001%", "1e1%", "1%%"])
def test_parse_size_wrong_percent_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="share between 0% and 100%"):
        parse_size(text)


def test_amount_share_is_exact_and_rounded_down() -> None:
    assert parse_size("33.333%").of(SIZE_MAX) == SIZE_MAX * 33_333 // 100_000
    assert parse_size("1%").of(199) == 1


def test_amount_bytes_do_not_depend_on_the_whole() -> None:
    assert parse_size("1K").of(0) == 1024


@pytest.mark.parametrize("text", ["10%", "0%", "100%", "12.5%", "0.001%", "0", "4096"])
def test_amount_str_is_read_back(text: str) -> None:
    assert str(parse_size(text)) == text


@pytest.mark.parametrize(
    ("value", "duration_ns"),
    [
        (0, 0),
        (300, 300 * SECOND),
        ("300", 300 * SECOND),
        ("1.5", 1_500_000_000),
        ("300s", 300 * SECOND),
        ("5min", 300 * SECOND),
        ("5 m", 300 * SECOND),
        (" 1h30min ", 5400 * SECOND),
        ("1h 30min", 5400 * SECOND),
        ("1.5h", 5400 * SECOND),
        ("30min 1h", 5400 * SECOND),
        ("1 hour 1 minute 1 second", 3661 * SECOND),
        ("2 weeks", 14 * 86400 * SECOND),
        ("1w1d", 8 * 86400 * SECOND),
        ("1M", 2_629_800 * SECOND),
        ("1y", 31_557_600 * SECOND),
        ("250ms", 250_000_000),
        ("7us", 7_000),
        ("7µs", 7_000),
        ("7ns", 7),
        (f"{DURATION_MAX_NS}ns", DURATION_MAX_NS),
    ],
)
def test_parse_duration_is_nanoseconds(value: str | int, duration_ns: int) -> None:
    assert parse_duration(value) == duration_ns


@pytest.mark.parametrize(
    "value",
    [
        -1,
        1 << 62,
        pytest.param(1 << 100_000, id="huge"),
        False,
        "",
        "s",
        "-5s",
        "5 5",
        "5 5s",
        "5s 5",
        "1h30",
        "5S",
        "5fortnights",
        "5 s!",
        "1,5h",
        "infinity",
        "300y",
        "9" * 20 + "ns",
        "1" * 5000,
        "1s" * 5000 + "!",
    ],
)
def test_parse_duration_no_duration_is_refused(value: str | int) -> None:
    with pytest.raises(UsageError, match="is not a duration") as e:
        parse_duration(value)
    assert len(str(e.value)) < 200


# What `ls -lh` shows of files of these sizes.
@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (1024, "1.0K"),
        (1025, "1.1K"),
        (10137, "9.9K"),
        (10138, "10K"),
        (10239, "10K"),
        (10240, "10K"),
        (1047552, "1023K"),
        (1047553, "1.0M"),
        (1048575, "1.0M"),
        (1258291, "1.2M"),
        (1 << 40, "1.0T"),
        (SIZE_MAX, "8.0E"),
    ],
)
def test_format_size_is_that_of_ls(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(min_value=0, max_value=1 << 62))
def test_format_size_read_back_is_not_less_and_near(size: int) -> None:
    shown = parse_bytes(format_size(size))
    assert size - size // 1000 <= shown <= size + size // 9 + 1


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (999, "999ns"),
        (1_000, "1us"),
        (1_500, "1.5us"),
        (999_999, "999us"),
        (1_000_000, "1ms"),
        (12_345_678, "12.3ms"),
        (250_000_000, "250ms"),
        (SECOND, "1s"),
        (1_050_000_000, "1.05s"),
        (60 * SECOND - 1, "59.9s"),
        (60 * SECOND, "1min"),
        (61 * SECOND, "1min 1s"),
        (300 * SECOND, "5min"),
        (3600 * SECOND + 59 * SECOND, "1h"),
        (5400 * SECOND, "1h 30min"),
        (86400 * SECOND - 1, "23h 59min"),
        (86400 * SECOND, "1d"),
        (400 * 86400 * SECOND, "400d"),
    ],
)
def test_format_duration_has_two_units(duration_ns: int, text: str) -> None:
    assert format_duration(duration_ns) == text


@given(st.integers(min_value=0, max_value=DURATION_MAX_NS))
def test_format_duration_read_back_is_not_more_and_near(duration_ns: int) -> None:
    shown = parse_duration(format_duration(duration_ns))
    assert duration_ns - duration_ns // 23 <= shown <= duration_ns
