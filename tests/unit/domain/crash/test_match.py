"""MATCH and filters: words in, a query out."""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.match import Alternative, Field, Query, parse_term, parse_time
from crashd.errors import FormatError, UsageError

ID = "20261123t050209-0123abcd-42-k0000001"
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
    ("text", "alternatives"),
    [
        (ID, ((Field.ID_PREFIX, ID),)),
        ("/usr/bin/x", ((Field.EXE, "/usr/bin/x"),)),
        ("42", ((Field.PID, 42), (Field.COMM, "42"))),
        ("2026", ((Field.ID_PREFIX, "2026"), (Field.PID, 2026), (Field.COMM, "2026"))),
        ("web.service", ((Field.UNIT, "web.service"), (Field.COMM, "web.service"))),
        ("user.slice", ((Field.SLICE, "user.slice"), (Field.COMM, "user.slice"))),
        ("abc", ((Field.COMM, "abc"),)),
        ("cafe", ((Field.ID_PREFIX, "cafe"), (Field.COMM, "cafe"))),
        ("My Prog", ((Field.COMM, "My Prog"),)),
        ("PID=42", (("pid", 42),)),
        ("COREDUMP_UID=0", (("uid", 0),)),
        ("signal=SEGV", (("signal", 11),)),
        ("SIGNAL=6", (("signal", 6),)),
        ("comm=a=b", (("comm", "a=b"),)),
        ("pinned=true", (("pinned", 1),)),
        ("si_code=-6", (("si_code", -6),)),
    ],
)
def test_parse_term_tells_what_a_word_may_mean(
    text: str, alternatives: tuple[tuple[str, str | int], ...]
) -> None:
    assert parse_term(text).alternatives == tuple(Alternative(f, v) for f, v in alternatives)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nofield=1",
        "pid=x",
        "signal=SIGNOPE",
        "core=1",
        "pinned=maybe",
        "uid=",
        "pid=1e3",
        "time=5",
    ],
)
def test_parse_term_nonsense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_term(text)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("sleep", "COMM=cat", True),
        ("42", "PID=43", True),
        ("web.service", "UNIT=db.service", True),
        ("/bin/a", "EXE=/bin/b", True),
        (ID, ID[:-1] + "2", True),
        ("sleep", "web.service", False),
        ("UID=0", "GID=0", False),
    ],
)
def test_group_same_field_widens_other_fields_narrow(first: str, second: str, same: bool) -> None:
    assert (parse_term(first).group == parse_term(second).group) is same


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


def test_query_comes_back_from_its_json() -> None:
    query = Query(("a", "PID=5"), 1, 2, "process", "sig", 20, True)
    assert Query.from_json(query.to_json()) == query
    assert Query.from_json({}) == Query()


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"drop": 1},
        {"terms": "abc"},
        {"terms": [1]},
        {"terms": ["x"] * 65},
        {"terms": ["x" * 5000]},
        {"kind": "table"},
        {"kind": 5},
        {"signature": 5},
        {"limit": "5"},
        {"limit": True},
        {"since_ns": 1 << 63},
        {"until_ns": 1.5},
    ],
)
def test_query_of_nonsense_is_refused(document: object) -> None:
    with pytest.raises(FormatError):
        Query.from_json(document)


@given(st.text(max_size=30))
def test_parse_term_any_text_is_a_term_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_term(text).alternatives
