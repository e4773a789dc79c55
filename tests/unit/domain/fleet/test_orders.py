"""Orders and answers: what was built is parsed, and what the shipper says is not believed."""

from typing import Any

import pytest

from crashd.domain.fleet.orders import (
    Answer,
    Get,
    Order,
    Put,
    ShipSettings,
    build_order,
    parse_answer,
    parse_order,
)
from crashd.domain.fleet.outcome import Failure, What
from crashd.errors import FormatError


@pytest.mark.parametrize(
    "order",
    [
        ShipSettings("s3://b", None, ("age1x",)),
        Put(3, What.CORE, "k", True, True),
        Get(4, What.POLICY, "k", None, 100),
    ],
)
def test_order_is_parsed_to_what_it_was_built_from(order: Order) -> None:
    assert parse_order(build_order(order)) == order


@pytest.mark.parametrize("document", [None, {}, {"do": "x"}, {"do": "put"}, {"do": "get", "a": 1}])
def test_malformed_order_is_refused(document: object) -> None:
    with pytest.raises(FormatError):
        parse_order(document)


def test_answer_is_parsed_to_what_it_was_built_from() -> None:
    answer = Answer(3, True, 10, "e", True, Failure.NETWORK, "away")
    assert parse_answer(answer.to_json()) == answer


@pytest.mark.parametrize(
    "values",
    [
        {"job": -1},
        {"job": True},
        {"bytes": "1"},
        {"bytes": 2**63},
        {"etag": None},
        {"etag": "x" * 1001},
        {"failure": "because"},
        {"text": 1},
    ],
)
def test_malformed_answer_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_answer({**Answer(1, True).to_json(), **values})


def test_long_text_of_an_answer_is_cut() -> None:
    assert len(parse_answer(Answer(1, True, text="x" * 10_000).to_json()).text) == 500
