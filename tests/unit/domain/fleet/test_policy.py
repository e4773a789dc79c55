"""Policies: what a host believes of an object that others can write."""

import json

import pytest

from crashd.domain.fleet import policy
from crashd.errors import FormatError, NewerError

ID = "20261127t233000-01234567-4711-k3v9x0ab"
SIGNATURE = "p2-0123456789abcdef"


def test_policies_are_parsed_to_what_they_were_built_from() -> None:
    assert policy.parse_signatures(policy.build_signatures([SIGNATURE])) == {SIGNATURE}
    want = policy.Want((ID,), (ID,))
    assert policy.parse_want(policy.build_want(want)) == want
    assert policy.parse_want(b'{"version":1}') == policy.Want()


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"version": "1"},
        {"version": 1, "cores": "x", "signatures": "x"},
        {"version": 1, "cores": ["../x"], "signatures": ["../x"]},
        {"version": 1, "deleted": [1], "signatures": [1]},
        {"version": 1, "cores": [ID] * 1001, "signatures": [SIGNATURE] * 200_001},
    ],
)
def test_malformed_policy_is_refused(document: object) -> None:
    raw = json.dumps(document).encode()
    for parse in (policy.parse_signatures, policy.parse_want):
        with pytest.raises(FormatError):
            parse(raw)


def test_policy_over_its_limit_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="at most"):
        policy.parse_want(b" " * (policy.WANT_BYTES + 1))


def test_policy_of_a_newer_crashd_is_told_apart() -> None:
    with pytest.raises(NewerError):
        policy.parse_want(b'{"version":2}')
