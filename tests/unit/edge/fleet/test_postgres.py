"""What psycopg is given; the database itself is in tests/integration."""

from datetime import UTC, date, datetime

from crashd.edge.fleet.postgres import array


def test_array_is_a_literal_without_quotes() -> None:
    assert array([1, -2]) == "{1,-2}" and array([]) == "{}"
    assert array([date(2026, 11, 5), date(1, 1, 1)]) == "{2026-11-05,0001-01-01}"
    assert array([datetime(2026, 11, 5, 1, tzinfo=UTC)]) == "{2026-11-05 01:00:00+00:00}"
    assert array([True, False]) == "{True,False}"
