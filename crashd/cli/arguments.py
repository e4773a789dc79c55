"""The command line of crashctl: the options of each verb (verbs.py), and the parser of both.

Imports nothing but argparse: a verb's own module is loaded when the verb runs. The man page and the
completions list the same options; tests/unit/test_docs.py compares them. Over 400 lines, because it
is one list: an operator's view of crashctl.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from crashd import __version__
from crashd.cli.verbs import ALIASES, DEFAULT_VERB, FLEET_VERBS, VERBS, Verb
from crashd.errors import UsageError

HELP_WIDTH = 80
COLORS = ("auto", "always", "never")
JSON_FORMS = ("short", "pretty", "off")
KINDS = ("process", "kernel")

_DASHED_VALUES = frozenset(
    ["-S", "--since", "-U", "--until", "--new-since", "-A", "--debugger-arguments"]
)
"""Options whose value may begin with a dash (`--since -1h`), which argparse would refuse."""
_VALUED_TEXT = """
--root --color --kind --signature -n --lines -F --field -D --directory --file -o --output
--debugger --vmlinux --host --label --by --identity
"""
VALUED = _DASHED_VALUES | frozenset(_VALUED_TEXT.split())
"""Options of any verb that take a value: before the verb, the next word is that value."""


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Make a formatter of fixed width; argparse loads several modules to find the terminal's."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=HELP_WIDTH)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of printing and exiting."""

    def error(self, message: str, hint: str | None = None) -> NoReturn:
        """Raise a UsageError with argparse's message."""
        verb = self.prog.removeprefix("crashctl").strip()
        raise UsageError(
            f"{verb}: {message}" if verb else message, hint=hint or f"see {self.prog} --help"
        )

    def refuse_dashes(self, words: Iterable[str]) -> None:
        """Refuse `--` as an option's value, in place of which argparse would set an empty list."""
        for word in words:
            if word.startswith("-") and "--" in (word[2:], word.partition("=")[2]):
                self.error(f"'--' is not a value: {word}")

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise a UsageError for options that there are not, and say which one may be meant."""
        from crashd.cli.habits import OPTIONS

        options = [name for action in self._actions for name in action.option_strings]
        name = words[0].partition("=")[0]
        hint = OPTIONS.get(name)
        near = _nearest(name, options) if name.startswith("--") and hint is None else ""
        # `-S -1h` was joined to `-S=-1h`, which is not what was typed
        typed = (re.sub(r"^(-\w)=", r"\1 ", word) for word in words)
        self.error(f"unrecognized arguments: {' '.join(typed)}{near}", hint)


def _nearest(word: str, names: Iterable[str]) -> str:
    """Return the question whether the name most like `word` is meant; nothing without one."""
    from difflib import get_close_matches  # takes a millisecond that only mistakes need

    bare = {name.lstrip("-"): name for name in names}  # dashes are no likeness
    found = get_close_matches(word.lstrip("-"), list(bare), 1)
    return f", did you mean {bare[found[0]]}?" if found else ""


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return number


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options allowed both before and after the verb.

    They have no default, so that one parser does not undo what the other has set.
    """
    add = parser.add_argument
    unset = argparse.SUPPRESS
    add("-h", "--help", action="help", default=unset, help="show this help and exit")
    add("--version", action="version", version=f"crashctl {__version__}", help="show the version")
    add("--root", metavar="DIR", default=unset, help="root of all paths of crashd ($CRASHD_ROOT)")
    add(
        "-q", "--quiet", action="store_true", default=unset, help="print no notes on standard error"
    )
    add("--no-pager", action="store_true", default=unset, help="do not pipe output into a pager")
    add("--no-legend", action="store_true", default=unset, help="print no column headings")
    add("--color", choices=COLORS, default=unset, help="use colours (auto: only on a terminal)")
    add("--debug", action="store_true", default=unset, help="print a traceback with every error")
    add(
        "--fleet",
        nargs="?",
        const="",
        default=unset,
        metavar="DSN",
        help="ask the index of a fleet, in PostgreSQL ($CRASHD_FLEET; value after =)",
    )


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", action="append", metavar="HOST", help="of this host only (with --fleet)")
    add("--label", action="append", metavar="NAME=VALUE", help="of hosts with this label only")


def _add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", metavar="FILE", help="key of age(1) for encrypted cores")


def _add_mini(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mini", action="store_true", help="fetch only what a stack needs")


def _add_times(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="crashes at or after TIME")
    add("-U", "--until", metavar="TIME", help="crashes at or before TIME")


def _add_list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_times(parser)
    add("--kind", choices=KINDS, help="crashes of this kind only")
    add("--signature", metavar="SIGNATURE", help="crashes with this signature only")
    add(
        "-n", "--lines", dest="limit", type=_positive, metavar="N", help="only the newest N crashes"
    )
    add("-1", dest="limit", action="store_const", const=1, help="only the newest crash")
    add("-r", "--reverse", action="store_true", help="list newest first")
    add("-F", "--field", metavar="FIELD", help="print only the values of FIELD, one per crash")
    _add_all(parser)
    _add_json(parser)
    _add_place(parser)


def _add_span(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="from TIME on (default: the last 24 hours)")
    add("-U", "--until", metavar="TIME", help="up to TIME (default: now)")
    add("--kind", choices=KINDS, help="crashes of this kind only")


def _add_stats(parser: argparse.ArgumentParser) -> None:
    _add_span(parser)
    add = parser.add_argument
    add(
        "-n",
        "--lines",
        dest="limit",
        type=_positive,
        metavar="N",
        help="show N bars per chart (default: 8)",
    )
    _add_json(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_span(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", help="write to FILE (- or none: standard output)")
    add("-f", "--force", action="store_true", help="replace FILE if it exists")


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="crashes of all hosts in the store (always so)"
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-D", "--directory", metavar="DIR", help="read the store in DIR, as /var/lib/crashd")
    add("--file", metavar="GLOB", help="read these indexes (index.sqlite) instead of a store")


def _json_form(text: str) -> str | bool:
    if text not in ("", *JSON_FORMS):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(JSON_FORMS)}")
    return {"": True, "off": False}.get(text, text)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        type=_json_form,
        default=False,
        metavar="FORM",
        help="print JSON; FORM (after =) is short, pretty or off",
    )


def _add_kdump(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--allow-deletion",
        action="store_true",
        help="let crashd.service delete dumps outside of /var/crash (makes a drop-in)",
    )


def _add_newest(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-1", dest="newest", action="store_true", help="the newest crash of all")
    _add_times(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add(
        "-n", "--lines", dest="limit", type=_positive, metavar="N", help="show the newest N crashes"
    )
    add("-r", "--reverse", action="store_true", help="show the newest of them first")
    add("-a", "--all", action="store_true", help="also show environment, maps and limits")
    _add_json(parser)
    _add_place(parser)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", required=True, help="write to FILE, named *.tar.zst")
    add("-f", "--force", action="store_true", help="replace FILE if it exists")
    _add_identity(parser)


def _add_top(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="count only crashes at or after TIME")
    add(
        "--new-since",
        metavar="TIME",
        help="only signatures first seen since TIME (with --fleet: or since a version)",
    )
    add("--by", metavar="WHAT", help="count by build, host, version or label:NAME (with --fleet)")
    add("--kind", choices=KINDS, help="crashes of this kind only")
    add(
        "-n",
        "--lines",
        dest="limit",
        type=_positive,
        metavar="N",
        default=20,
        help="show at most N signatures (default: 20)",
    )
    _add_json(parser)


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    _add_json(parser)


def _add_dump(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", help="write to FILE (- or none: standard output)")
    add("-f", "--force", action="store_true", help="replace FILE if it exists")
    _add_all(parser)
    add("-D", "--directory", metavar="DIR", help="read the store in DIR, as /var/lib/crashd")
    _add_identity(parser)
    _add_mini(parser)


def _add_debug(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add("--debugger", metavar="NAME", help="debugger (default: gdb; crash for a kernel)")
    add(
        "-A",
        "--debugger-arguments",
        metavar="ARGS",
        default="",
        help="extra arguments for the debugger",
    )
    add("--vmlinux", metavar="FILE", help="vmlinux of the kernel that crashed")
    add("--as-root", action="store_true", help="run the debugger as root")
    _add_all(parser)
    add("-D", "--directory", metavar="DIR", help="read the store in DIR, as /var/lib/crashd")
    _add_identity(parser)
    _add_mini(parser)


def _add_delete(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-f", "--force", action="store_true", help="also delete pinned crashes")
    add("-y", "--yes", action="store_true", help="do not ask for confirmation")


def _add_vacuum(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
    _add_json(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--deep", action="store_true", help="also decompress every core")
    add("--strict", action="store_true", help="like --deep; also report unowned files")
    _add_json(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--crash", action="store_true", help="also crash a test process and follow it"
    )
    _add_json(parser)


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "list": _add_list,
    "info": _add_info,
    "bundle": _add_bundle,
    "top": _add_top,
    "analyze": _add_analyze,
    "dump": _add_dump,
    "debug": _add_debug,
    "delete": _add_delete,
    "vacuum": _add_vacuum,
    "verify": _add_verify,
    "doctor": _add_doctor,
    "stats": _add_stats,
    "report": _add_report,
    "status": _add_json,
    "kdump": _add_kdump,
    "follow": _add_json,
}


def build_parser() -> Parser:
    """Build the parser of the options before the verb."""
    verbs = "\n".join(f"  {verb.name:<10} {verb.summary}" for verb in VERBS.values())
    parser = Parser(
        prog="crashctl",
        usage="crashctl [OPTION...] [COMMAND] ...",
        description="Show and manage the crashes that crashd has caught.",
        epilog=f"commands (default: {DEFAULT_VERB}):\n{verbs}\n"
        "  help       show this help, or that of a command\n"
        f"  {', '.join(f'{alias} is {name}' for alias, name in ALIASES.items())}\n\n"
        "MATCH selects crashes: an id or its beginning, PID, COMM, /path/to/exe, a unit,\n"
        "a signal, or FIELD=VALUE; text may have the wildcards *, ? and [...].\n\n"
        "Exit status: 0 success, 1 no match or a failed check, 2 usage error,\n"
        "3 permission denied, 4 store or daemon unavailable. See crashctl(1).",
        formatter_class=_formatter,
        allow_abbrev=False,
        add_help=False,
    )
    _add_common(parser)
    return parser


def build_verb_parser(verb: Verb) -> Parser:
    """Build the parser of one verb's own options and of its MATCH arguments."""
    summary = verb.summary[0].upper() + verb.summary[1:] + "."
    usage = " ".join(filter(None, ("crashctl", verb.name, "[OPTION...]", verb.match)))
    parser = Parser(
        prog=f"crashctl {verb.name}",
        usage=usage,
        description=summary,
        formatter_class=_formatter,
        allow_abbrev=False,
        add_help=False,
    )
    if verb.match:
        parser.add_argument("match", nargs="*", metavar="MATCH", help=argparse.SUPPRESS)
    if verb.name in _OPTIONS:
        _OPTIONS[verb.name](parser)
    if verb.name in FLEET_VERBS:
        _add_fleet(parser)
    _add_common(parser)
    return parser


def parse(argv: Sequence[str]) -> tuple[Verb, argparse.Namespace]:
    """Parse the arguments after the program's name.

    Raises:
        UsageError: an argument is wrong.
        SystemExit: after the output of `--help` or `--version`.
    """
    values = argparse.Namespace(
        root=os.environ.get("CRASHD_ROOT") or "/",
        quiet=False,
        no_legend=False,
        no_pager=False,
        color="auto",
        debug=False,
        fleet=None,
    )
    place = _find_verb(argv)
    words = [*argv[:place], *argv[place + 1 :]]
    if place >= len(argv):
        if {"-h", "--help"} & set(_split(argv)[0]):
            build_parser().print_help()
            raise SystemExit(0)
        name = DEFAULT_VERB
    elif argv[place] == "help":
        name, words = _asked_about(argv[place + 1 :])
    else:
        name = argv[place]
    verb = VERBS.get(ALIASES.get(name, name))
    if verb is None:
        _refuse_unknown_options(argv[:place])
        from crashd.cli import habits

        meant = habits.VERBS.get(name)
        near = f", did you mean {meant}?" if meant else _nearest(name, (*VERBS, *ALIASES, "help"))
        build_parser().error(f"unknown command {name!r}{near}")
    return verb, _parse_verb(verb, words, values)


def _refuse_unknown_options(words: Sequence[str]) -> None:
    """Refuse an option that no verb has: the word after it may be its value, and not a verb."""
    parsers = [build_verb_parser(verb) for verb in VERBS.values()]
    known = [
        name for parser in parsers for action in parser._actions for name in action.option_strings
    ]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            near = _nearest(name, known)
            build_parser().error(f"unrecognized arguments: {word}{near}")


def _asked_about(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command, and the words, that `help` with `words` stands for."""
    names = [word for word in words if not word.startswith("-")]
    if names:
        return names[0], ["--help"]
    build_parser().print_help()
    raise SystemExit(0)


def _parse_verb(verb: Verb, words: Sequence[str], values: argparse.Namespace) -> argparse.Namespace:
    parser = build_verb_parser(verb)
    options, matches = _split(words)
    parser.refuse_dashes(options)
    values, unknown = parser.parse_known_intermixed_args(options, values)
    if values.fleet is not None and verb.name not in FLEET_VERBS:
        parser.error("--fleet is for " + ", ".join(FLEET_VERBS))
    if values.fleet is None and verb.name == "want":
        parser.error("--fleet is required: cores of this host are here already")
    if verb.match:
        values.match = [*values.match, *matches]
    if unknown or (matches and not verb.match):
        parser.refuse_unknown(unknown or matches)
    if verb.match:
        if "" in values.match:
            parser.error("empty MATCH")
        if verb.needs_match and not values.match and not getattr(values, "newest", False):
            parser.error("MATCH is required")
    return values


def _find_verb(argv: Sequence[str]) -> int:
    """Return the index of the first word that is neither an option nor an option's value.

    It is behind the end if there is none, as if only MATCHes follow `--`.
    """
    place = 0
    while place < len(argv) and argv[place].startswith("-"):
        if argv[place] == "--":
            return len(argv)
        place += 2 if _takes_next(argv, place) else 1
    return place


def _takes_next(words: Sequence[str], place: int) -> bool:
    """Return whether the word at `place` is an option whose value is the next word."""
    word = words[place]
    if word.startswith("--") or len(word) == 2:
        return word in VALUED or _is_json_form(words, place)
    # several letters: all but the last without a value, as in -rn 5
    return f"-{word[-1]}" in VALUED and not any(f"-{letter}" in VALUED for letter in word[1:-1])


def _is_json_form(words: Sequence[str], place: int) -> bool:
    """Return whether `--json` at `place` has the next word as its form, as coredumpctl's has."""
    return words[place] == "--json" and any(form in JSON_FORMS for form in words[place + 1 :][:1])


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at `--` into options and MATCHes.

    argparse takes a word with a dash for an option. So the value of each option of _DASHED_VALUES
    is joined to its option: `-S -1h` becomes `-S=-1h`. And it would take the MATCH after `--json`
    for its value, so that gets an empty one.
    """
    options: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return options, rest
        if word == "--fleet":
            options.append("--fleet=")
        elif word == "--json":
            options.append(f"--json={rest.pop(0) if _is_json_form([word, *rest], 0) else ''}")
        elif word in _DASHED_VALUES and rest:
            options.append(f"{word}={rest.pop(0)}")
        else:
            options.append(word)
    return options, []
