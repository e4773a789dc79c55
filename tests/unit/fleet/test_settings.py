"""What an index says of itself."""

from typing import Any

import pytest

from crashd.errors import UnavailableError
from crashd.fleet.schema import migrations
from crashd.fleet.settings import NEWEST, check


class Database:
    """A database with so many migrations."""

    def __init__(self, number: int | None) -> None:
        self._row = (number,)

    def execute(self, *_: Any) -> "Database":
        """Answer with the number."""
        return self

    def fetchone(self) -> tuple[Any, ...]:
        """Return the row."""
        return self._row

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return [self._row]


def test_newest_is_the_last_migration() -> None:
    assert migrations()[-1][0] == NEWEST


@pytest.mark.parametrize(
    ("number", "words"),
    [(None, "older"), (NEWEST - 1, "older"), (NEWEST + 1, "newer"), (NEWEST, "")],
)
def test_check_wants_exactly_this_schema(number: int | None, words: str) -> None:
    if not words:
        check(Database(number))
        return
    with pytest.raises(UnavailableError, match=words):
        check(Database(number))
