import tomllib
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.configuration.tomltext import locate_keys, show_key, show_value

# ~~~ and @@@ stand for three apostrophes and three quotes.
DOCUMENT = r"""# [no] = 1
top = "x = 1 # not a comment"  # [nor] a header
a.b.c = 1

[table]
plain = 1
"quoted key" = 2
'literal "key"' = 3
"esc\u0061ped" = 4
dotted . "x.y" = [1, [2,
  "]", # ]
  3], { in_array = 1 }]
inline = { one = 1, two.three = { four = "}" }, empty = {}, five = [] }
after = 1979-05-27 07:32:00
basic = @@@
no = 1
"" \" \\@@@
literal = ~~~
[none]
~~~'
float = 1.5e-3
[ table . "sub table" ]
key = ''
[[items]]
name = 1
[[items]]
name = 2
once = 3
[last]
""".replace("~~~", "'''").replace("@@@", '"""')


def test_locate_keys_document_has_every_line() -> None:
    tomllib.loads(DOCUMENT)
    assert locate_keys(DOCUMENT) == {
        ("top",): 2,
        ("a",): 3,
        ("a", "b"): 3,
        ("a", "b", "c"): 3,
        ("table",): 5,
        ("table", "plain"): 6,
        ("table", "quoted key"): 7,
        ("table", 'literal "key"'): 8,
        ("table", "escaped"): 9,
        ("table", "dotted"): 10,
        ("table", "dotted", "x.y"): 10,
        ("table", "dotted", "x.y", "in_array"): 12,
        ("table", "inline"): 13,
        ("table", "inline", "one"): 13,
        ("table", "inline", "two"): 13,
        ("table", "inline", "two", "three"): 13,
        ("table", "inline", "two", "three", "four"): 13,
        ("table", "inline", "empty"): 13,
        ("table", "inline", "five"): 13,
        ("table", "after"): 14,
        ("table", "basic"): 15,
        ("table", "literal"): 18,
        ("table", "float"): 21,
        ("table", "sub table"): 22,
        ("table", "sub table", "key"): 23,
        ("items", "once"): 28,
        ("last",): 29,
    }


def test_locate_keys_crlf_is_one_line() -> None:
    assert locate_keys("a = 1\r\n# x\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("b", "c"): 4}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_locate_keys_nothing_is_empty(text: str) -> None:
    assert locate_keys(text) == {}


_CHARACTERS = st.text(alphabet="ab\"'\\#[]{}=,. \n", max_size=30)


def _quote(text: str, style: int) -> str:
    """Write any string in one of TOML's four styles, where it can be."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if style == 1:
        return f'"""{escaped}"""'
    if style == 2 and "'" not in text and "\n" not in text:
        return f"'{text}'"
    if style == 3 and "''" not in text and not text.startswith("\n"):
        return f"'''{text}'''"
    return '"' + escaped.replace("\n", "\\n") + '"'


@given(st.lists(st.tuples(_CHARACTERS, st.integers(0, 3), st.booleans()), max_size=8))
def test_locate_keys_hostile_strings_do_not_move_lines(
    values: list[tuple[str, int, bool]],
) -> None:
    text = ""
    expected: dict[tuple[str, ...], int] = {}
    for number, (value, style, in_array) in enumerate(values):
        expected[(f"k{number}",)] = text.count("\n") + 1
        quoted = _quote(value, style)
        text += f"k{number} = {f'[{quoted}, {{x = {quoted}}}]' if in_array else quoted}\n"
        if in_array:
            expected[(f"k{number}", "x")] = expected[(f"k{number}",)] + quoted.count("\n")
    tomllib.loads(text)
    assert locate_keys(text) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-1.5, "-1.5"),
        pytest.param(1 << 100_000, "a huge number", id="huge"),
        pytest.param(-(1 << 100_000), "a huge number", id="-huge"),
        ("yes", '"yes"'),
        ("a\x1b[2J\n", '"a\\x1b[2J\\x0a"'),
        ("x" * 61, '"' + "x" * 60 + '…"'),
        ([1], "an array"),
        ({"a": 1}, "a table"),
        (date(1979, 5, 27), "1979-05-27"),
    ],
)
def test_show_value_is_short_and_printable(value: object, text: str) -> None:
    assert show_value(value) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("capture", "max_core"), "capture.max_core"),
        (("capture.mode",), '"capture.mode"'),
        (("",), '""'),
        (("é", "a\n"), '"é"."a\\x0a"'),
    ],
)
def test_show_key_is_quoted_where_needed(key: tuple[str, ...], text: str) -> None:
    assert show_key(key) == text
