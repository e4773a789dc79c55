"""Queries: to JSON and back, whoever wrote it."""

import pytest

from crashd.domain.crash.query import Query
from crashd.errors import FormatError


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
