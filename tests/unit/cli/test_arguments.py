import pytest

from crashd.cli import habits
from crashd.cli.arguments import VALUED, build_verb_parser, parse
from crashd.cli.verbs import ALIASES, VERBS
from crashd.errors import UsageError


def test_parse_common_options_before_and_after_the_verb_are_the_same() -> None:
    before = parse(["--root", "/r", "-q", "--color", "never", "list"])[1]
    after = parse(["list", "--root", "/r", "-q", "--color", "never"])[1]
    assert before.root == after.root == "/r"
    assert before.quiet is after.quiet is True
    assert before.color == after.color == "never"


def test_parse_option_after_the_verb_wins() -> None:
    assert parse(["--root", "/a", "list", "--root", "/b"])[1].root == "/b"


def test_parse_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASHD_ROOT", "/trial")
    assert parse(["list"])[1].root == "/trial"
    assert parse(["list", "--root", "/r"])[1].root == "/r"
    monkeypatch.delenv("CRASHD_ROOT")
    assert parse(["list"])[1].root == "/"


def test_parse_matches_may_stand_between_options() -> None:
    values = parse(["list", "nginx", "-n", "5", "1234", "--json", "uid=0"])[1]
    assert values.match == ["nginx", "1234", "uid=0"]
    assert (values.limit, values.json) == (5, True)


@pytest.mark.parametrize(
    "words", [["--since", "-1h"], ["-S", "-1h"], ["--since=-1h"], ["-S-1h"], ["x", "-S", "-1h"]]
)
def test_parse_value_may_begin_with_a_dash(words: list[str]) -> None:
    assert parse(["list", *words])[1].since == "-1h"


@pytest.mark.parametrize("value", ["=", "=x", "-=", "-h", "---", ""])
def test_parse_option_for_times_takes_any_word(value: str) -> None:
    for words in (["list", "-S", value], ["list", "--since", value], ["-S", value]):
        assert parse(words)[1].since == value


@pytest.mark.parametrize(
    "word", ["-S=--", "-S--", "--since=--", "-F--", "--field=--", "--root=--", "-n=--", "--json=--"]
)
def test_parse_two_dashes_are_no_value(word: str) -> None:
    for words in (["list", word], [word, "list"], [word]):
        with pytest.raises(UsageError):
            parse(words)


def test_parse_option_for_times_does_not_take_two_dashes() -> None:
    with pytest.raises(UsageError, match="'--' is not a value"):
        parse(["list", "-S", "--", "x"])


def test_parse_debugger_arguments_may_begin_with_a_dash() -> None:
    assert parse(["debug", "x", "-A", "-batch"])[1].debugger_arguments == "-batch"


def test_parse_words_after_two_dashes_are_matches() -> None:
    values = parse(["list", "-r", "--", "-1", "--json"])[1]
    assert values.match == ["-1", "--json"]
    assert values.json is False
    assert parse(["dump", "--", "-x"])[1].match == ["-x"]


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ([], ["list"]),
        (["-q"], ["list", "-q"]),
        (["-r1"], ["list", "-r", "-1"]),
        (["-n", "5"], ["list", "-n", "5"]),
        (["-rn", "5", "list", "nginx"], ["list", "nginx", "-r", "-n", "5"]),
        (["--json=short"], ["list", "--json=short"]),
        (["--json", "short", "list"], ["list", "--json=short"]),
        (["-o", "file", "dump", "/usr/bin/bar"], ["dump", "/usr/bin/bar", "-o", "file"]),
        (["--all", "dump", "bar"], ["dump", "bar", "--all"]),
        (["--all", "gdb", "bar"], ["debug", "bar", "--all"]),
        (["--since", "-1h", "list"], ["list", "--since=-1h"]),
        (["--debugger", "lldb", "debug"], ["debug", "--debugger=lldb"]),
        (["gdb", "nginx"], ["debug", "nginx"]),
        (["bt"], ["info"]),
        (["rm", "-y", "x"], ["delete", "x", "--yes"]),
        (["-D", "/x", "info"], ["info", "-D", "/x"]),
        (["--", "nginx"], ["list", "nginx"]),
        (["list", "--json", "off"], ["list"]),
    ],
)
def test_parse_other_ways_to_say_the_same(words: list[str], same: list[str]) -> None:
    assert parse(words) == parse(same)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["--json"], True),
        (["--json", "nginx"], True),
        (["--json=short"], "short"),
        (["--json", "pretty"], "pretty"),
        (["--json=off"], False),
        ([], False),
    ],
)
def test_parse_json_has_forms(words: list[str], form: object) -> None:
    assert parse(["list", *words])[1].json == form


def test_valued_are_the_options_with_a_value() -> None:
    for verb in VERBS.values():
        for action in build_verb_parser(verb)._actions:
            takes_value = action.option_strings and action.nargs is None
            assert (
                set(action.option_strings) <= VALUED
                if takes_value
                else (not VALUED.intersection(action.option_strings))
            ), action


def test_parse_help_of_a_verb_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--root", "/r", "-q", "help", "dump"], ["dump", "--help"]):
        with pytest.raises(SystemExit):
            parse(words)
    first, second = capsys.readouterr().out.split("usage:")[1:]
    assert first == second
    with pytest.raises(SystemExit):
        parse(["--root", "/r", "-n", "5", "help"])
    assert "gdb is debug" in capsys.readouterr().out


def test_parse_one_of_list_is_the_newest() -> None:
    assert parse(["list", "-1"])[1].limit == 1


@pytest.mark.parametrize("verb", ["dump", "debug"])
def test_parse_newest_stands_for_a_match(verb: str) -> None:
    assert parse([verb, "-1"])[1].match == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["remove"], "unknown command 'remove'"),
        (["lis"], "unknown command 'lis', did you mean list?"),
        (["--sinc", "yesterday"], "unrecognized arguments: --sinc, did you mean --since?"),
        (
            ["--root", "/r", "--lin=5", "lst"],
            "unrecognized arguments: --lin=5, did you mean --lines?",
        ),
        (["--root", "/r", "lst"], "unknown command 'lst', did you mean list?"),
        (["help", "dmp"], "unknown command 'dmp', did you mean dump?"),
        (["list", "--revers"], "unrecognized arguments: --revers, did you mean --reverse?"),
        (["list", "--json=yaml"], "'yaml' is not one of short, pretty, off"),
        (["list", "--nonsense"], "list: unrecognized arguments: --nonsense"),
        (["list", "--rev"], "unrecognized arguments: --rev, did you mean --reverse?"),
        (["pin", "nginx", "-S", "-1h"], "pin: unrecognized arguments: -S -1h"),
        (["list", "-n", "0"], "-n"),
        (["list", "-n", "-3"], "-n"),
        (["list", "-n", "٣"], "-n"),
        (["list", ""], "empty MATCH"),
        (["list", "--kind", "daemon"], "--kind"),
        (["bundle", "-o", "x.tar.zst"], "bundle: MATCH is required"),
        (["-F", "exe", "info"], "info: unrecognized arguments: -F"),
        (["delete", "--yes"], "MATCH is required"),
        (["pin"], "MATCH is required"),
        (["status", "x"], "unrecognized arguments: x"),
        (["status", "--", "x"], "unrecognized arguments: x"),
        (["list", "--since"], "--since"),
    ],
)
def test_parse_wrong_command_line_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert message in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("see crashctl")


@pytest.mark.parametrize("words", [["--version"], ["list", "--version"]])
def test_parse_version_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("crashctl ")


@pytest.mark.parametrize("verb", VERBS)
def test_parse_help_fits_a_terminal(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([verb, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: crashctl {verb}")
    assert max(len(line) for line in shown.splitlines()) <= 80


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["list", "-u", "nginx"], "list: unrecognized arguments: -u", "list nginx.service"),
        (["list", "--unit=nginx"], "--unit=nginx", "list nginx.service"),
        (["-f"], "list: unrecognized arguments: -f", "crashctl follow"),
        (["list", "--full"], "--full", "crashctl list | cat"),
        (["info", "-l"], "-l", "crashctl list | cat"),
        (["list", "-o", "json"], "-o", "--json"),
        (["-b"], "-b", "boot_id=ID"),
        (["show", "nginx"], "unknown command 'show', did you mean info?", "crashctl --help"),
        (["ls"], "unknown command 'ls', did you mean list?", "crashctl --help"),
        (["remove", "x"], "unknown command 'remove', did you mean delete?", "crashctl --help"),
    ],
)
def test_parse_knows_the_habits_of_others(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert message in str(caught.value)
    assert caught.value.hint is not None and hint in caught.value.hint


def test_habits_name_what_there_is() -> None:
    assert set(habits.VERBS.values()) <= set(VERBS)
    assert not habits.VERBS.keys() & {*VERBS, *ALIASES}
