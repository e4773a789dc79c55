"""Times of --since and --until, compared with systemd's own parser where it is here."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.cli.render import local_time, local_time_of_ns
from crashd.domain.crash.timestamp import parse_time
from crashd.errors import UsageError

NOW_NS = int(datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()) * 10**9
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW_NS),
        ("@5.5", 5_500_000_000),
        ("-1h", NOW_NS - HOUR_NS),
        ("+30min", NOW_NS + HOUR_NS // 2),
        ("2 days ago", NOW_NS - 48 * HOUR_NS),
        ("2026-11-23T12:00:00Z", NOW_NS),
        ("2026-11-23 13:00:00", NOW_NS),
        ("2026-11-23 13:00", NOW_NS),
        ("2026-11-23T07:00:00-05:00", NOW_NS),
        ("today", NOW_NS - 13 * HOUR_NS),
        ("yesterday", NOW_NS - 37 * HOUR_NS),
        ("2026-11-23", NOW_NS - 13 * HOUR_NS),
        ("13:00", NOW_NS),
        ("9:30", NOW_NS - 7 * HOUR_NS // 2),
        ("9:30:15", NOW_NS - 7 * HOUR_NS // 2 + 15 * 10**9),
        ("2026-11-23T12:00:00.250Z", NOW_NS + 250_000_000),
        ("2026-11-23T12:00:00.750Z", NOW_NS + 750_000_000),
        ("Mon 2026-11-23 13:00:00", NOW_NS),
        ("monday 26-11-23 13:00", NOW_NS),
        ("2026-11-23 13:00:00 CET", NOW_NS),
        ("2026-11-23 14:00:00 CEST", NOW_NS),
        ("2026-11-23 12:00:00 UTC", NOW_NS),
        ("12:00 UTC", NOW_NS),
        ("today UTC", NOW_NS - 12 * HOUR_NS),
        ("2026-11-23 21:00 Asia/Tokyo", NOW_NS),
        ("2026-11-23 14:00:00 +02:00", NOW_NS),
        ("2026-11-23 09:00:00 -03", NOW_NS),
        ("2026-11-23 12:59:60", NOW_NS),
        ("1h 30min ago", NOW_NS - 3 * HOUR_NS // 2),
        ("3 hours left", NOW_NS + 3 * HOUR_NS),
        ("-1.5h", NOW_NS - 3 * HOUR_NS // 2),
        ("@1795435200", NOW_NS),
        ("today 13:00", NOW_NS),
        ("yesterday 13:00 CET", NOW_NS - 24 * HOUR_NS),
        ("tomorrow 12:00:00 UTC", NOW_NS + 24 * HOUR_NS),
        ("1h30 ago", NOW_NS - HOUR_NS - 30 * 10**9),
        ("-2h 3", NOW_NS - 2 * HOUR_NS - 3 * 10**9),
        ("-90", NOW_NS - 90 * 10**9),
        ("2026-11-23 12:00 utc", NOW_NS),
        ("2026-11-23Z", NOW_NS - HOUR_NS * 12),
        ("2026-11-23 Z", NOW_NS - HOUR_NS * 12),
        ("9999-12-31", (1 << 63) - 1),
    ],
)
def test_parse_time_as_journalctl_takes_them(text: str, expected: int) -> None:
    assert parse_time(text, NOW_NS) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "-",
        "@",
        "@x",
        "25:00",
        "2026-13-01",
        "ago",
        "-5 parsecs",
        "@1e400",
        "@1e30",
        "@-1e25",
        "Tue 2026-11-23",
        "mon",
        "now UTC",
        "today 2026-11-23",
        "today today",
        "todayish",
        "12:00 Nowhere/City",
        "2026-11-23 ../../etc/passwd",
        "2026-11-23 05",
        "24:00",
        "2026-11-23T",
        "12:61",
        "12:00:62",
        "2026-02-32",
    ],
)
def test_parse_time_nonsense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_time(text, NOW_NS)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("yesterday", datetime(2026, 10, 23, 22, tzinfo=UTC)),
        ("today", datetime(2026, 10, 24, 22, tzinfo=UTC)),
        ("00:30", datetime(2026, 10, 24, 22, 30, tzinfo=UTC)),
        ("tomorrow", datetime(2026, 10, 25, 23, tzinfo=UTC)),
    ],
)
def test_parse_time_on_the_day_that_has_25_hours(text: str, utc: datetime) -> None:
    noon_ns = int(datetime(2026, 10, 25, 11, tzinfo=UTC).timestamp()) * 10**9
    assert parse_time(text, noon_ns) == int(utc.timestamp()) * 10**9


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Asia/Kolkata", "UTC"])
@pytest.mark.parametrize("month", [1, 7])
def test_parse_time_takes_what_info_and_list_print(
    zone: str, month: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    moment = datetime(2026, month, 23, 5, 2, 9, tzinfo=UTC)
    time_ns = int(moment.timestamp()) * 10**9
    assert parse_time(local_time_of_ns(time_ns), NOW_NS) == time_ns
    assert parse_time(local_time(moment.isoformat()), NOW_NS) == time_ns


@given(st.text(max_size=30))
def test_parse_time_any_text_is_a_time_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_time(text, NOW_NS)


OF_SYSTEMD = (
    """
Mon 2026-11-23 05:02:09|Monday 2026-11-23|mon 2026-11-23|26-11-23 05:02|2026-11-23 5:02|2026-1-3
2026-11-23 05:02:09.25|2026-11-23 05:02:09 UTC|today UTC|11:12 UTC|2026-07-23 05:02:09 CEST
3 hours left|1h30min ago|5m 20s ago|+1.5h|-2 days|@5|70-01-02|-1|5 ago|2026-03-29 02:30|yesterday
1h30 ago|2h 3 ago|2012-02-30|2026-02-31 05:00|2026-04-31|2026-02-30 UTC|Mon 2026-02-30
05:02:60|05:02:61
2 weeks ago|-3months 2days|-3month|+1y 2d|tomorrow|2026-11-23 05:02:09.123456|-5d 3h|-100ms|now
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@pytest.mark.allow_subprocess
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_parse_time_agrees_with_systemd() -> None:
    now_ns = time.time_ns()
    done = subprocess.run(
        ["systemd-analyze", "timestamp", "--", *OF_SYSTEMD],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [float(seconds) for seconds in re.findall(r"UNIX seconds: @([\d.]+)", done.stdout)]
    assert len(theirs) == len(OF_SYSTEMD)
    ours = [parse_time(text, now_ns) / 1e9 for text in OF_SYSTEMD]
    wrong = [
        text
        for text, one, other in zip(OF_SYSTEMD, ours, theirs, strict=True)
        if abs(one - other) > 5
    ]
    assert wrong == []
