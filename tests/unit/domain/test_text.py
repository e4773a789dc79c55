import itertools
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
        ("a\u061cb\u200bc\ufeffd", "a\\u061cb\\u200bc\\ufeffd"),
        ("a\u00a0b\u3000c\u2800", "a\\xa0b\\u3000c\\u2800"),
        ("a\U000e0041\U000e0100", "a\\U000e0041\\U000e0100"),
        ("\u0301e\u0301", "\\u0301e\u0301"),
        ("e" + 7 * "\u0301" + "e\u0301", "e" + 5 * "\u0301" + 2 * "\\u0301" + "e\u0301"),
        ("é" + 6 * "\u0489" + "e", "é" + 5 * "\u0489" + "\\u0489e"),
        ("", ""),
    ],
)
def test_printable_controls_are_escaped(value: bytes | str, text: str) -> None:
    assert printable(value) == text


IGNORABLE = (
    {0xAD, 0x34F, 0x61C, 0x3164, 0xFEFF, 0xFFA0}
    | set(itertools.chain(range(0x115F, 0x1161), range(0x17B4, 0x17B6), range(0x180B, 0x1810)))
    | set(itertools.chain(range(0x200B, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x2070)))
    | set(itertools.chain(range(0xFE00, 0xFE10), range(0xFFF0, 0xFFF9), range(0x1BCA0, 0x1BCA4)))
    | set(itertools.chain(range(0x1D173, 0x1D17B), range(0xE0000, 0xE1000)))
)
"""Default_Ignorable_Code_Point, DerivedCoreProperties-15.0.0.txt."""

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_hidden(character: str) -> bool:
    """Return whether a reader cannot see that this character is there, or which it is."""
    category = unicodedata.category(character)
    return (
        category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or (category == "Zs" and character != " ")
        or ord(character) in IGNORABLE
        or unicodedata.bidirectional(character) in BIDI_CONTROLS
        or character == "\u2800"
    )


def test_printable_of_every_code_point_shows_it_or_its_number() -> None:
    """U+061C, U+200B and U+FEFF passed, and with them two names that look the same."""
    wrong = []
    for code in range(0x110000):
        text = printable("a" + chr(code) + "b")
        number = text[2 : len(text) - 1].lstrip("xuU")
        if is_hidden(chr(code)):
            right = text.isascii() and text[1] == "\\" and int(number, 16) == code
        else:
            right = text == "a" + chr(code) + "b"
        if not right:
            wrong.append(hex(code))
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "Überprüfung",
        "Здравствуйте",
        "שָׁלוֹם",
        "السَّلَامُ",
        "नमस्ते",
        "สวัสดีที่นี่",
        "བཀྲ་ཤིས",
        "こんにちは",
        "한국어",
        "Việt",
        "👍🏽",
    ],
)
def test_printable_letters_of_all_scripts_stay(text: str) -> None:
    assert printable(text) == text


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
