"""Patterns and times as PostgreSQL takes them."""

import re
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.fleet.selection import moment_of, regex


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("ngin*", "nginx", True),
        ("ngin?", "nginx", True),
        ("ngin?", "ngin", False),
        ("*/bin/*", "/usr/bin/x", True),
        ("a.c", "abc", False),
        ("[ab]x", "bx", True),
        ("[!ab]x", "bx", False),
        ("[x", "[x", True),
        ("[!]", "[!]", True),
        ("[!]a]", "b", True),
        ("[!]a]", "]", False),
        ("a+(b)", "a+(b)", True),
        ("a\nb", "a\nb", True),
    ],
)
def test_regex_of_pattern_matches_what_glob_does(pattern: str, text: str, is_match: bool) -> None:
    assert bool(re.search(regex(pattern), text, re.DOTALL)) is is_match


@given(st.text("ab*?.[]^!\\$(){}|+", max_size=8), st.text("ab.[]^!\\$(){}|+", max_size=6))
def test_regex_is_always_valid_and_agrees_with_fnmatch(pattern: str, text: str) -> None:
    compiled = re.compile(regex(pattern), re.DOTALL)
    if "[" not in pattern:
        assert bool(compiled.search(text)) == fnmatchcase(text, pattern)


@pytest.mark.parametrize("time_ns", [0, -(1 << 63), (1 << 63) - 1, 1_795_412_639 * 10**9])
def test_moment_of_any_time_is_one_that_postgresql_has(time_ns: int) -> None:
    found = moment_of(time_ns)
    assert datetime(1, 1, 1, tzinfo=UTC) <= found <= datetime(9999, 12, 31, tzinfo=UTC)
