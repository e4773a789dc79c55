"""--fleet on the command line: where it may stand, and what it needs."""

from pathlib import Path

import pytest

from crashd.cli.arguments import parse
from crashd.cli.context import Context, open_context
from crashd.cli.verbs import FLEET_VERBS, VERBS
from crashd.errors import UsageError


def context_of(*words: str, environ: dict[str, str] | None = None) -> Context:
    """Build the context of a command line."""
    import io

    _, arguments = parse(words)
    return open_context(arguments, out=io.StringIO(), environ=environ or {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ["--fleet", "list", "nginx"],
        ["list", "--fleet", "nginx"],
        ["list", "nginx", "--fleet"],
        ["--fleet=", "list", "nginx"],
    ],
)
def test_parse_of_fleet_without_dsn_takes_no_word_for_it(words: list[str]) -> None:
    verb, arguments = parse(words)
    assert (verb.name, arguments.match, arguments.fleet) == ("list", ["nginx"], "")


def test_open_context_takes_dsn_host_and_labels() -> None:
    words = ["--fleet=dbname=x", "list", "--host", "a", "--host", "b", "--label", "zone=fra=1"]
    fleet = context_of(*words).fleet
    assert fleet is not None
    assert (fleet.dsn, fleet.hosts, fleet.labels) == ("dbname=x", ("a", "b"), (("zone", "fra=1"),))
    assert fleet.is_narrow
    named = context_of("--fleet", "dump", "x", "--identity", "k", environ={"CRASHD_FLEET": "d"})
    assert named.fleet is not None
    assert (named.fleet.dsn, named.fleet.identity) == ("d", Path("k"))


def test_open_context_without_fleet_ignores_the_environment() -> None:
    assert context_of("list", environ={"CRASHD_FLEET": "dbname=x"}).fleet is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fleet", "list"], "no fleet is named"),
        (["list", "--host", "x"], "--host needs --fleet"),
        (["top", "--by", "build"], "--by needs --fleet"),
        (["dump", "x", "--mini"], "--mini needs --fleet"),
        (["--fleet=d", "list", "--label", "zone"], "--label is not of the form"),
        (["--fleet=d", "install"], "--fleet is for"),
        (["want", "x"], "--fleet is required"),
    ],
)
def test_wrong_use_of_fleet_is_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        context_of(*words)


def test_fleet_verbs_are_verbs() -> None:
    assert set(FLEET_VERBS) <= set(VERBS)
