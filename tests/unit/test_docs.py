"""Man pages and completions have every verb and option of the parsers, and no others."""

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.cli.arguments import build_parser, build_verb_parser
from crashd.cli.verbs import VERBS
from crashd.daemon.main import build_parser as build_daemon_parser
from crashd.domain.crash.model import LIST_KEYS, State
from crashd.edge.web import exporter

REPOSITORY = Path(__file__).parents[2]
PACKAGING = REPOSITORY / "packaging"
MAN = PACKAGING / "man"
COMPLETION = PACKAGING / "completion"
MAN_PAGES = ["crashctl.1", "crashd.8", "crashd-core.8"]

# Prints what bash would offer for `crashctl VERB -`.
BASH_DRIVER = """
source "$1"
compopt() { :; }
COMP_WORDS=(crashctl "${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_crashctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


COMMON = options_of(build_parser())
OPTIONS = {name: options_of(build_verb_parser(verb)) for name, verb in VERBS.items()}


def complete_in_bash(*words: str) -> set[str]:
    done = subprocess.run(
        ["bash", "-c", BASH_DRIVER, "bash", str(COMPLETION / "crashctl.bash"), *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("verb", VERBS)
def test_bash_completion_offers_exactly_the_options_of_a_verb(verb: str) -> None:
    assert complete_in_bash(verb, "-") == OPTIONS[verb]


@pytest.mark.allow_subprocess
def test_bash_completion_offers_exactly_the_verbs() -> None:
    assert complete_in_bash("") == set(VERBS)
    assert complete_in_bash("--root", "/tmp", "-q", "") == set(VERBS)
    assert complete_in_bash("-") == COMMON


@pytest.mark.allow_subprocess
def test_bash_completion_offers_the_values_of_closed_options() -> None:
    assert complete_in_bash("list", "--kind", "") == {"process", "kernel"}
    assert complete_in_bash("debug", "--debugger", "") == {"gdb", "lldb", "drgn", "crash"}
    assert complete_in_bash("list", "--color", "a") == {"auto", "always"}


def options_in_zsh(text: str) -> set[str]:
    """Take the options out of _arguments specifications: '(-a --all)'{-a,--all=}'[…' or '--x[…'."""
    found: set[str] = set()
    for braces, single in re.findall(r"\{([^{}\s]+)\}'\[|'(?:\([^)]*\))?(-[^\s\[']+)\[", text):
        found |= {word.rstrip("=") for word in (braces or single).split(",")}
    return found


def test_zsh_completion_has_exactly_the_verbs_and_options() -> None:
    text = (COMPLETION / "_crashctl").read_text()
    common, _, rest = text.partition("verbs=(")
    described, _, cases = rest.partition("\n    )\n")
    assert options_in_zsh(common) == COMMON
    assert set(re.findall(r"'(\w+):", described)) == set(VERBS)
    blocks = dict(re.findall(r"^        ([\w |]+)\)\n(.*?)^            ;;$", cases, re.M | re.S))
    for verb in VERBS:
        names = next((n for n in blocks if verb in n.split(" | ")), None)
        own = options_in_zsh(blocks[names]) if names else set()
        assert own == OPTIONS[verb] - COMMON, verb


def test_fish_completion_has_exactly_the_verbs_and_options() -> None:
    verbs: set[str] = set()
    options: dict[str, set[str]] = {verb: set() for verb in VERBS}
    common: set[str] = set()
    for line in (COMPLETION / "crashctl.fish").read_text().splitlines():
        found = {"-" + word for word in re.findall(r" -s (\S+)", line)}
        found |= {"--" + word for word in re.findall(r" -l (\S+)", line)}
        condition = re.search(r"-n '__fish_seen_subcommand_from ([^']+)'", line)
        if condition:
            for verb in condition[1].split():
                options[verb] |= found
        elif "not __fish_seen_subcommand_from" in line:
            verbs |= set(re.findall(r" -a (\w+)", line))
        elif line.startswith("complete"):
            common |= found
    assert verbs == set(VERBS)
    assert common == COMMON
    assert options == {verb: OPTIONS[verb] - COMMON for verb in VERBS}


def definitions(page: str) -> set[str]:
    """Collect what a page sets in bold."""
    return set(re.findall(r"\*\*([^*]+)\*\*", (MAN / f"{page}.rst").read_text()))


def test_crashctl_page_has_every_verb_and_option() -> None:
    bold = definitions("crashctl.1")
    assert set(VERBS) <= bold
    assert set().union(*OPTIONS.values()) <= bold


def test_crashctl_page_has_each_option_where_its_verb_is() -> None:
    """A heading of OPTIONS names the verbs that it is about."""
    page = (MAN / "crashctl.1.rst").read_text()
    _, *parts = re.split(r"^([^\n]+)\n(-+)$", page.split("\nOPTIONS\n")[1], flags=re.MULTILINE)
    found: dict[str, set[str]] = {verb: set() for verb in VERBS}
    for heading, text in zip(parts[::3], parts[2::3], strict=True):
        for verb in heading.split(", ") if heading != "All commands" else ():
            found[verb] |= set(re.findall(r"\*\*(--?[\w-]+)\*\*", text.split("\nMATCH\n")[0]))
    of_fleets = {"--host", "--label", "--identity", "--mini", "--by"}
    missing = {verb: OPTIONS[verb] - COMMON - of_fleets - found[verb] for verb in VERBS}
    assert not any(missing.values()), missing


@pytest.mark.parametrize("path", sorted(MAN.glob("*.rst")), ids=lambda path: path.stem)
def test_page_has_no_heading_or_option_in_a_line_of_text(path: Path) -> None:
    """What joins the lines of paragraphs joins those of short headings and definitions, too."""
    text = path.read_text()
    assert not re.findall(r"^.*\w +(?:-{4,}|={4,}).*$", text, re.MULTILINE)
    option = r"\*\*--?[\w-]+\*\*"
    assert not re.findall(rf"^{option}(?:, {option})* [A-Z].*$", text, re.MULTILINE)
    assert not re.findall(r"^\d [A-Z].*$", text, re.MULTILINE)


def test_crashctl_page_names_no_option_that_there_is_not() -> None:
    options = {word for word in definitions("crashctl.1") if re.fullmatch(r"--?[a-z0-9-]+", word)}
    assert options - {"-IS"} <= set().union(*OPTIONS.values())


def test_crashctl_page_has_every_state_and_json_key() -> None:
    text = (MAN / "crashctl.1.rst").read_text()
    assert {f"{state.value}" for state in State} <= definitions("crashctl.1")
    assert " ".join(LIST_KEYS) in " ".join(text.split())


def test_crashd_page_has_every_verb_and_option() -> None:
    parser = build_daemon_parser()
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    wanted = options_of(parser) | set(verbs.choices)
    for verb in verbs.choices.values():
        wanted |= options_of(verb)
    assert wanted <= definitions("crashd.8")


def reasons_listed() -> dict[str, tuple[set[str], str]]:
    """Return what crashd(8) lists as reasons of each metric, and the text there."""
    page = (MAN / "crashd.8.rst").read_text()
    listed = page.split("The label *reason* has one vocabulary")[1].split("\nRecords use")[0]
    _, *parts = re.split(r"^of \*(crashd_\w+)\*.*$", listed, flags=re.MULTILINE)
    return {
        name.removesuffix("_total"): (set(re.findall(r"(?<!\*)\*([a-z_]+)\*(?!\*)", text)), text)
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_crashd_page_lists_every_reason_of_the_metrics() -> None:
    counted = {
        name: set(labels["reason"])
        for name, (_, labels) in exporter._COUNTERS.items()
        if "reason" in labels
    }
    assert {name: words for name, (words, _) in reasons_listed().items()} == counted


def test_crashd_page_quotes_what_the_log_says_of_a_drop() -> None:
    _, text = reasons_listed()["crashd_dropped"]
    source = "".join(path.read_text() for path in (REPOSITORY / "crashd/daemon").rglob("*.py"))
    said = re.findall(r"``([^`]+)``", text)
    assert len(said) >= 9
    for words in said:
        assert re.search(rf'log\.\w+\(\s*f?"[^"]*{re.escape(words)}', source), words


def test_alerts_page_explains_every_reason_of_its_alerts() -> None:
    page = (MAN / "crashd-alerts.7.rst").read_text()
    rules = (REPOSITORY / "etc/prometheus/crashd.rules.yml").read_text()
    for alert, reasons in re.findall(
        r"alert: (\w+)\n +expr: [^\n]*crashd_dropped_total\{reason=~\"([a-z_|]+)\"", rules
    ):
        told = page.split(f"\n{alert}\n")[1].split("\n\n")[0]
        assert set(reasons.split("|")) <= set(re.findall(r"\*([a-z_]+)\*", told)), alert


def headings(page: str) -> Iterator[str]:
    yield from re.findall(r"^([A-Z][A-Z ]+)\n=+$", (MAN / f"{page}.rst").read_text(), re.M)


@pytest.mark.parametrize("page", MAN_PAGES)
def test_page_has_the_sections_that_readers_look_for(page: str) -> None:
    assert {"SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"} <= set(headings(page))


@pytest.mark.parametrize("path", sorted(MAN.glob("*.rst")), ids=lambda path: path.stem)
def test_page_builds_without_a_warning(path: Path) -> None:
    core = pytest.importorskip("docutils.core", reason="docutils builds the man pages")
    built = core.publish_string(
        path.read_text(),
        source_path=str(path),
        writer="manpage",  # by this name since docutils 0.22
        settings_overrides={"halt_level": 2, "report_level": 2, "output_encoding": "unicode"},
    )
    assert built.count(".SH") >= 4


def test_each_test_that_security_md_names_is_there() -> None:
    """By its beginning: one rule may have several."""
    sources = [
        *(REPOSITORY / "tests").rglob("test_*.py"),
        REPOSITORY / "tests/vm/container.sh",
        REPOSITORY / "tests/vm/guest.sh",
    ]
    tests = {
        name.replace("test_0_", "test_")  # what the guest does in its first life
        for path in sources
        for name in re.findall(r"^(?:def )?(test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    text = (REPOSITORY / "SECURITY.md").read_text()
    named = set(re.findall(r"`(test_\w+)…?`", text))
    assert len(named) > 40
    assert [n for n in sorted(named) if not any(test.startswith(n) for test in tests)] == []
    faults = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert faults == set(range(1, 31))
    assert faults == {int(n) for n in re.findall(r"`test_fault_(\d\d)", text)} - {0}


def test_crashctl_s_man_page_names_each_variable_of_the_environment() -> None:
    sources = (Path(__file__).parents[2] / "crashd/cli").rglob("*.py")
    read = re.compile(r"""environ(?:\.get\(|\[)"([A-Z_]+)"|"(PG[A-Z]+|LC_[A-Z]+)\"""")
    used = {a or b for path in sources for a, b in read.findall(path.read_text())}
    page = (Path(__file__).parents[2] / "packaging/man/crashctl.1.rst").read_text()
    environment = page.partition("\nENVIRONMENT\n")[2].partition("\nFILES\n")[0]
    assert {"COLUMNS", "CRASHD_FLEET", "PGHOST"} <= used
    assert {name for name in used if f"**{name}**" not in environment} == set()


def test_readme_names_each_manual_page() -> None:
    root = Path(__file__).parents[2]
    named = (root / "README.md").read_text().partition("Documentation: ")[2].partition("\n\n")[0]
    for page in (root / "packaging/man").glob("*.rst"):
        name, section, _ = page.name.rsplit(".", 2)
        assert f"{name}({section})" in named
