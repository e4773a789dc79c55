import shlex
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.text import printable, shell_join


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"plain /path-1", "plain /path-1"),
        ("é漢".encode(), "é漢"),
        (b"\xff", "\\xff"),
        (b"a\nb\tc\rd", "a\\x0ab\\x09c\\x0dd"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\0\x7f", "\\x00\\x7f"),
        ("\x9b", "\\x9b"),
        ("a\u202eb", "a\\u202eb"),
        ("\u2028\u2029\u200e\u200f\u2066\u2069", "\\u2028\\u2029\\u200e\\u200f\\u2066\\u2069"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("", ""),
    ],
)
def test_printable_controls_are_escaped(value: bytes | str, text: str) -> None:
    assert printable(value) == text


@given(st.one_of(st.binary(max_size=40), st.text(st.characters(), max_size=40)))
def test_printable_any_input_is_one_safe_line(value: bytes | str) -> None:
    text = printable(value)
    text.encode()
    assert len(text.splitlines()) <= 1
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
    assert not any(
        unicodedata.bidirectional(c) in ("RLO", "LRO", "RLI", "LRI", "PDI") for c in text
    )


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ((), b""),
        ((b"",), b"''"),
        ((b"a", b"b c"), b"a 'b c'"),
        ((b"it's",), b"'it'\"'\"'s'"),
        ((b"$(id)", b"`id`", b"a;b"), b"'$(id)' '`id`' 'a;b'"),
        ((b"--x=/a.b:c,d@e%f+g_h-1",), b"--x=/a.b:c,d@e%f+g_h-1"),
        ((b"\xff\n",), b"'\xff\n'"),
        ((b"a\n",), b"'a\n'"),
    ],
)
def test_shell_join_arguments_are_quoted_where_needed(argv: tuple[bytes, ...], line: bytes) -> None:
    assert shell_join(argv) == line


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
def test_shell_join_a_shell_splits_it_again(argv: list[str]) -> None:
    line = shell_join(tuple(a.encode() for a in argv)).decode()
    assert shlex.split(line) == argv
