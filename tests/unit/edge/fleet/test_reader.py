"""Values on their way to libpq, and errors on theirs back; a server is in tests/integration."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from crashd.edge.fleet import libpq
from crashd.edge.fleet.reader import Reader, fault
from crashd.errors import (
    CrashdError,
    PermissionDeniedError,
    UnavailableError,
    UsageError,
)


class Link:
    """A link that keeps what it is given, and answers with one row."""

    def __init__(self, types: list[int], row: list[bytes | None]) -> None:
        self.given: tuple[Any, ...] = ()
        self._answer = types, [row]

    def execute(self, *given: Any) -> tuple[list[int], list[list[bytes | None]]]:
        """Answer."""
        self.given = given
        return self._answer


def ask(values: list[Any], types: list[int], row: list[bytes | None]) -> tuple[Any, Any]:
    """Return what the library is given, and the row that is made of its answer."""
    link = Link(types, row)
    found = Reader(link).execute("SELECT %s", values).fetchone()  # type: ignore[arg-type]
    return link.given, found


def test_execute_numbers_the_placeholders() -> None:
    link = Link([], [])
    Reader(link).execute(b"SELECT a WHERE b = %s AND c = ANY(%s)", [1, []])  # type: ignore[arg-type]
    assert link.given == ("SELECT a WHERE b = $1 AND c = ANY($2)", [23, 0], [b"1", b"{}"])


@pytest.mark.parametrize(
    ("value", "oid", "text"),
    [
        (None, 0, None),
        (True, 16, b"t"),
        (7, 23, b"7"),
        (-(1 << 31), 23, b"-2147483648"),
        (1 << 31, 20, b"2147483648"),
        (1 << 63, 1700, b"9223372036854775808"),
        (1.5, 701, b"1.5"),
        ("a'b", 0, b"a'b"),
        ("\udcff", 0, b"\xff"),
        (date(2026, 11, 5), 1082, b"2026-11-05"),
        (datetime(2026, 11, 5, 1, tzinfo=UTC), 1184, b"2026-11-05T01:00:00+00:00"),
        ([1, 2], 1007, b'{"1","2"}'),
        ([1, 1 << 40], 1016, b'{"1","1099511627776"}'),
        (['a"\\,}'], 0, b'{"a\\"\\\\,}"}'),
        ([date(2026, 11, 5)], 1182, b'{"2026-11-05"}'),
    ],
)
def test_execute_gives_texts_with_their_types(value: Any, oid: int, text: bytes | None) -> None:
    assert ask([value], [], [])[0][1:] == ([oid], [text])


@pytest.mark.parametrize(
    ("oid", "text", "value"),
    [
        (16, b"f", False),
        (20, b"-5", -5),
        (701, b"0.25", 0.25),
        (25, "später".encode(), "später"),
        (3802, b'{"a": [1, null]}', {"a": [1, None]}),
        (1082, b"2026-11-05", date(2026, 11, 5)),
        (1184, b"2026-11-05 01:02:03.12+00", datetime(2026, 11, 5, 1, 2, 3, 120000, UTC)),
        (1184, b"2026-11-05 01:02:03+00", datetime(2026, 11, 5, 1, 2, 3, 0, UTC)),
        (25, None, None),
    ],
)
def test_execute_reads_values_by_their_types(oid: int, text: bytes | None, value: Any) -> None:
    assert ask([], [oid], [text])[1] == (value,)


@pytest.mark.parametrize(
    ("oid", "text"), [(1184, b"infinity"), (3802, b"[" * 99999), (3802, b"9" * 5000), (25, b"\xff")]
)
def test_execute_of_a_value_that_python_lacks_is_one_error(oid: int, text: bytes) -> None:
    with pytest.raises(CrashdError, match="cannot be read"):
        ask([], [oid], [text])


def test_execute_refuses_nul_because_a_c_string_would_end_there() -> None:
    with pytest.raises(UsageError, match="NUL"):
        ask(["a\0b"], [], [])


@pytest.mark.parametrize(
    ("sqlstate", "error"),
    [
        (None, UnavailableError),
        ("57P01", UnavailableError),
        ("42P01", UnavailableError),
        ("57014", UnavailableError),
        ("42501", PermissionDeniedError),
        ("22P02", CrashdError),
    ],
)
def test_fault_is_one_line_with_its_exit_status(
    sqlstate: str | None, error: type[CrashdError]
) -> None:
    found = fault(sqlstate, "ERROR:  a\x1b[1m\nDETAIL: b")
    assert type(found) is error
    assert "\n" not in str(found) and "\x1b" not in str(found)


def test_parse_dsn_takes_strings_and_urls() -> None:
    library = libpq.load()
    assert libpq.parse_dsn(library, "host=a,b user='x y'") == {"host": "a,b", "user": "x y"}
    assert libpq.parse_dsn(library, "postgresql://u@h/d") == {
        "user": "u",
        "host": "h",
        "dbname": "d",
    }
    assert libpq.parse_dsn(library, "") == {}
    for wrong in ("postgresql://[", "password=secret x", "a\0b"):
        with pytest.raises(ValueError) as e:
            libpq.parse_dsn(library, wrong)
        assert "secret" not in str(e.value)
