"""quick.py must understand what arguments.py does, or leave it to that."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.cli.arguments import parse
from crashd.cli.quick import parse_quickly
from crashd.errors import UsageError

WORDS_TEXT = """
list info top bt help dump lis nginx /usr/bin/a COREDUMP_PID=5 COREDUMP_EXE= -1 -r --reverse -n 5 0
-n5 -rn --lines --lines=7 -S -1h --since --since=-1h -S-1h -U --until now --until= -F exe -Fexe
--field --signature --signature=p2-0123456789abcdef --kind --kind=kernel process --all -a
--json --json=short short pretty off --json=off --json= --json=yaml -D /x --directory
--directory=/y --file --file=a* --root --root=/r -q --quiet -qr --no-pager --no-legend --color
--color=never always --debug --version -h --help -- - --fleet --fleet=x --host --label=a=b
--host=h --identity -x --nonsense --quiet=1 -y
"""
WORDS = ["", *WORDS_TEXT.split()]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "list",
        "-1",
        "-r -n 20",
        "list nginx --no-pager",
        "-q --no-legend list -S -1h --until now",
        "--since=yesterday list COREDUMP_EXE=/usr/bin/sleep",
        "-F COREDUMP_EXE list",
        "--json=short",
        "--json list",
        "list --json pretty nginx",
        "info",
        "-S yesterday info -n 2 -r",
        "info nginx --until=now --reverse",
        "info 4242 -1 --all",
        "bt nginx",
        "info --json=short -D /x",
        "--root /r --file a* list --lines=5 --signature p2-0123456789abcdef",
        "top",
        "top -n 5 --since -7d --json",
        "--fleet list -n 20",
        "list --fleet nginx",
        "--fleet=dbname=x info 4242",
        "top nginx --fleet",
        "--quiet --no-legend --color=never list -n 200",
        "--color always info",
    ],
)
def test_parse_quickly_understands_the_plain_calls(words: str) -> None:
    argv = words.split()
    found = parse_quickly(argv)
    assert found is not None
    verb, values = parse(argv)
    assert (found[0], vars(found[1])) == (verb, vars(values))


@given(st.lists(st.sampled_from(WORDS), max_size=7))
def test_parse_quickly_never_differs_from_parse(argv: list[str]) -> None:
    found = parse_quickly(argv)
    if found is None:
        return
    with contextlib.suppress(UsageError):
        verb, values = parse(argv)
        assert (found[0], vars(found[1])) == (verb, vars(values))
        return
    raise AssertionError(f"only parse_quickly takes {argv}")


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(WORDS)))
def test_parse_quickly_of_any_words_is_what_parse_says(argv: list[str]) -> None:
    found = parse_quickly(argv)
    if found is not None:
        verb, values = parse(argv)
        assert (found[0], vars(found[1])) == (verb, vars(values))


def test_parse_quickly_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASHD_ROOT", "/trial")
    found = parse_quickly(["list"])
    assert found is not None
    assert found[1].root == "/trial"
