"""The tables say what dash 0.5.12 has after sourcing the text."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.kdump.shellconf import PROBLEMS_MAX, TEXT_MAX, parse_shell
from crashd.errors import FormatError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("A=", {"A": ""}),
        ("# A=1\n  A=2 # B=3\n", {"A": "2"}),
        ("A=a#b", {"A": "a#b"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=1;B=2 C=3", {"A": "1", "B": "2", "C": "3"}),
        ("export A=1 B", {"A": "1"}),
        ("readonly A='x y'", {"A": "x y"}),
        ("A=\"x 'y' #z\"", {"A": "x 'y' #z"}),
        ("A='a\"b\\'", {"A": 'a"b\\'}),
        ('A="a\\"b\\$c\\d"', {"A": 'a"b$c\\d'}),
        ("A=a\\ b\\$", {"A": "a b$"}),
        ("A=a\\\nb", {"A": "ab"}),
        ('A="a\\\nb\nc"', {"A": "ab\nc"}),
        ("A=a'b'\"c\"d", {"A": "abcd"}),
        ("A='$B' C='`x`'", {"A": "$B", "C": "`x`"}),
        ("A=x~y", {"A": "x~y"}),
        ("A=*", {"A": "*"}),
        ("A=1\r\nB=2\r\n", {"A": "1\r", "B": "2\r"}),
        ("A=1\nunset A\nB=2", {"B": "2"}),
        ("A=1\nexit 0\nA=2", {"A": "1"}),
        ("A=1\ntrue\n[ -n x ]\n", {"A": "1"}),
        ("A=1 env\n", {}),
        ("A=1\nA=2 env\n", {"A": "1"}),
        ("A=1\nA=2 | true\nA=3 &\n", {"A": "1"}),
        ("'A'=1", {}),
        ("1A=2\nA-B=3\n", {}),
    ],
)
def test_parse_shell_plain_assignment_is_what_a_shell_has(
    text: str, values: dict[str, str]
) -> None:
    found = parse_shell(text.encode())
    assert found.values == values
    assert found.unknown == frozenset()
    assert found.whole


@pytest.mark.parametrize(
    "text",
    [
        "A=$B",
        "A=${B:-1}",
        "A=$(echo 1)",
        "A=`echo 1`",
        'A="x $B"',
        "A=$((1+1))",
        "A=~/x",
        "A=~",
        "A=x:~",
        "A=(1 2)",
        "if true; then A=2; fi",
        "if true\nthen\nA=2\nfi",
        "[ -f /x ] && A=2",
        "[ -f /x ] &&\nA=2",
        "[ -f /x ] || A=2",
        "for A in 2 3; do true; done",
        "while false; do A=2; done",
        "case x in\n y) A=2;;\nesac",
        "{ A=2; }",
        "( A=2 )",
        "f() { A=2; }\n",
        "[ -f /x ] && exit\nA=2",
        "[ -f /x ] && unset A",
        "true | A=2",
        "A=2 >/dev/null",
        ">/dev/null A=2",
        "A=2 export B",
    ],
)
def test_parse_shell_what_only_a_shell_can_tell_is_unknown(text: str) -> None:
    found = parse_shell(b"A=1\n" + text.encode() + b"\nZ=9\n")
    assert "A" not in found.values
    assert found.unknown >= {"A"}
    assert found.get("A", "default") is None


CHANGING = [". /etc/other", "source x", "eval A=2", "read A", "A=2 . x", "f() { A=2; }\nf"]
CHANGING += [
    "$X A=2",
    "export $X",
    "unset $X",
    "set -a",
    "declare A=2",
    "printf -v A 2",
    "trap x 0",
]


@pytest.mark.parametrize("text", CHANGING)
def test_parse_shell_what_may_change_anything_makes_all_unknown(text: str) -> None:
    found = parse_shell(b"A=1\n" + text.encode() + b"\nZ=9\n")
    assert "A" not in found.values
    assert found.get("A", "x") is None
    assert found.get("NEVER_NAMED", "x") is None
    assert found.get("Z", "x") in ("9", None)


@pytest.mark.parametrize("text", ["A='x\nB=2", 'A="x\nB=2', "A=1\ncat <<E\nA=2\nE\nB=3", "B='"])
def test_parse_shell_broken_text_is_trusted_for_nothing(text: str) -> None:
    found = parse_shell(b"Z=1\n" + text.encode())
    assert found.values == {}
    assert not found.whole
    assert found.problems


def test_parse_shell_problems_name_lines_and_no_text() -> None:
    found = parse_shell(b"A=1\n\nrm -rf /secret\nif x; then\n")
    assert found.problems == (
        "line 3: a command, which is not run here",
        "line 4: a command, which is not run here",
        "line 5: a compound command is not closed",
    )
    assert len(parse_shell(b"x\n" * 999).problems) == PROBLEMS_MAX


def test_get_empty_is_the_default() -> None:
    found = parse_shell(b"A=\nB=2")
    assert [found.get(name, "x") for name in "ABC"] == ["x", "2", "x"]


@pytest.mark.parametrize("raw", [b"A=1\0", b"#" * (TEXT_MAX + 1)])
def test_parse_shell_no_text_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_shell(raw)


def test_parse_shell_latin1_value_round_trips() -> None:
    assert parse_shell(b"A=\xe9").values["A"].encode("utf-8", "surrogateescape") == b"\xe9"


PIECES = [
    "A=1",
    "\n",
    ";",
    "'",
    '"',
    "\\",
    "$",
    "`",
    "(",
    ")",
    "{",
    "}",
    "if ",
    "fi",
    "case ",
    " in ",
]
PIECES += [
    "esac",
    "&&",
    "|",
    "<",
    "<<",
    "export ",
    "unset A",
    "#",
    " ",
    "exit",
    "~",
    "=",
    "\r",
    "for ",
]


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_parse_shell_any_text_raises_format_error_only(text: bytes | str) -> None:
    with suppress(FormatError):
        found = parse_shell(text.encode() if isinstance(text, str) else text)
        assert not found.values.keys() & found.unknown


def test_parse_shell_huge_line_is_linear() -> None:
    assert parse_shell(b"A=" + b"x" * (TEXT_MAX - 2)).values["A"].startswith("x")
    assert parse_shell(b"A=1 " * (TEXT_MAX // 4)).values == {"A": "1"}
    assert parse_shell(b"(" * TEXT_MAX).values == {}
