from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from crashd.cli.context import Context
from crashd.cli.source import (
    COUNTED_MAX,
    all_named_by_id,
    newest,
    not_found,
    open_source,
    refuse_several,
)
from crashd.domain.crash.query import Query
from crashd.errors import UnavailableError

from .rows import row_of

ROWS = [
    row_of(id=f"20261123t050209-5f0c77aa-{pid}-{short}")
    for pid, short in ((1, "aaaabbbb"), (2, "aaaacccc"), (3, "ddddeeee"))
]


@pytest.mark.parametrize(
    ("match", "named"),
    [
        (["aaaabbbb", "aaaacccc", "ddddeeee"], True),
        ([str(row["id"]) for row in ROWS], True),
        (["aaaab", "aaaac", "dddd"], True),
        (["aaaabbbb", "aaaacccc"], False),
        (["aaaa", "dddd"], False),
        (["2026"], False),
        (["nginx"], False),
        (["aaaabbbb", "aaaacccc", "ddddeeee", "nginx"], True),
        ([], False),
    ],
)
def test_all_named_by_id_counts_what_names_one_crash_only(match: list[str], named: bool) -> None:
    assert all_named_by_id(ROWS, match) is named


def test_refuse_several_names_the_newest() -> None:
    rows = [row_of(pid=number) for number in range(7)]
    error = refuse_several(rows, ["nginx"])
    assert str(error).startswith("nginx matches 7 crashes: ")
    assert str(error).endswith(" and 2 more")
    assert error.exit_code == 2


class Rows:
    """A source of so many rows."""

    def __init__(self, count: int) -> None:
        self.count = count

    def select(self, query: Query) -> list[dict[str, Any]]:
        limit = self.count if query.limit is None else min(query.limit, self.count)
        return [row_of(pid=number) for number in range(limit)]

    def top(self, query: Query) -> list[dict[str, Any]]:
        raise AssertionError(query)

    def info(self, crash_id: str) -> dict[str, Any]:
        raise AssertionError(crash_id)

    def open_core(self, crash_id: str) -> int:
        raise AssertionError(crash_id)

    def close(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("count", "match", "note"),
    [
        (1, ["nginx"], ""),
        (3, [], ""),
        (3, ["nginx"], "crashctl: newest of 3 matching crashes\n"),
        (COUNTED_MAX, ["nginx"], f"crashctl: newest of {COUNTED_MAX} matching crashes\n"),
        (
            COUNTED_MAX + 9,
            ["nginx"],
            f"crashctl: newest of more than {COUNTED_MAX} matching crashes\n",
        ),
    ],
)
def test_newest_tells_of_the_others(
    count: int, match: list[str], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Context("/", color=False, legend=True, quiet=False, width=None)
    arguments = Namespace(match=match, since=None, until=None)
    assert newest(context, Rows(count), arguments)["pid"] == 0
    assert capsys.readouterr().err == note


def test_not_found_says_what_was_asked_for() -> None:
    assert str(not_found(["nginx", "uid=0"])) == "no crash matches nginx uid=0"
    assert str(not_found([])) == "no crashes found"


def test_open_source_without_store_and_daemon_is_unavailable(tmp_path: Path) -> None:
    context = Context(str(tmp_path), color=False, legend=True, quiet=False, width=None)
    with pytest.raises(UnavailableError, match="no store in"):
        open_source(context)
