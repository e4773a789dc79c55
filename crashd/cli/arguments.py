"""The command line of crashctl: its verbs and their options, and the parser of both.

Imports nothing but argparse: a verb's own module is loaded when the verb runs. The man page and the
completions list the same options; tests/unit/test_docs.py compares them. Over 400 lines, because it
is one list: an operator's view of crashctl.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from crashd import __version__
from crashd.errors import UsageError

HELP_WIDTH = 80
COLORS = ("auto", "always", "never")
DEBUGGERS = ("gdb", "drgn", "crash")
KINDS = ("process", "kernel")

_DASHED_VALUES = frozenset(
    ["-S", "--since", "-U", "--until", "--new-since", "-A", "--debugger-arguments"]
)
"""Options whose value may begin with a dash (`--since -1h`), which argparse would refuse."""


class Verb(NamedTuple):
    """One verb: its name, what it does, and the function that does it."""

    name: str
    summary: str
    module: str
    function: str
    match: str | None
    """How the usage line shows MATCH; None if the verb takes no MATCH."""
    needs_match: bool = False


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("list", "list crashes, newest last", "show.listing", "list_crashes", "[MATCH...]"),
        Verb("info", "show everything known about a crash", "show.listing", "show", "[MATCH...]"),
        Verb(
            "dump",
            "write the core of a crash to a file or a pipe",
            "open.dump",
            "dump",
            "MATCH...",
            True,
        ),
        Verb("debug", "open a crash in a debugger", "open.debug", "debug", "MATCH...", True),
        Verb(
            "bundle",
            "save a crash with everything needed to debug it elsewhere",
            "open.bundle",
            "bundle",
            "MATCH...",
            True,
        ),
        Verb("top", "list signatures, most frequent first", "show.top", "top", "[MATCH...]"),
        Verb("analyze", "analyse a crash again", "show.top", "analyze", "MATCH...", True),
        Verb(
            "delete", "delete crashes and their cores", "manage.change", "delete", "MATCH...", True
        ),
        Verb("pin", "protect crashes from deletion", "manage.change", "pin", "MATCH...", True),
        Verb(
            "unpin",
            "allow pinned crashes to be deleted again",
            "manage.change",
            "unpin",
            "MATCH...",
            True,
        ),
        Verb(
            "vacuum",
            "delete what exceeds the retention limits now",
            "manage.vacuum",
            "vacuum",
            None,
        ),
        Verb("status", "show the daemon's status", "manage.status", "status", None),
        Verb("verify", "check the store against its index", "manage.verify", "verify", None),
        Verb("reindex", "rebuild the index from the store", "manage.change", "reindex", None),
        Verb(
            "install",
            "register crashd as the kernel's crash handler",
            "manage.setup",
            "install",
            None,
        ),
        Verb("uninstall", "restore the previous crash handler", "manage.setup", "uninstall", None),
        Verb("stats", "show crash counts over time", "show.stats", "stats", "[MATCH...]"),
        Verb(
            "report",
            "write an HTML report of recent crashes",
            "show.report",
            "report",
            "[MATCH...]",
        ),
        Verb("follow", "print crashes as they happen", "show.listing", "follow", None),
        Verb(
            "kdump",
            "check whether a kernel crash would leave a dump",
            "check.kdump",
            "kdump",
            None,
        ),
        Verb(
            "doctor",
            "check that crashes on this host will be caught",
            "check.doctor",
            "doctor",
            None,
        ),
    )
}


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Make a formatter of fixed width; argparse loads several modules to find the terminal's."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=HELP_WIDTH)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with argparse's message."""
        verb = self.prog.removeprefix("crashctl").strip()
        raise UsageError(f"{verb}: {message}" if verb else message, hint=f"see {self.prog} --help")


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
    add("--no-legend", action="store_true", default=unset, help="print no column headings")
    add("--color", choices=COLORS, default=unset, help="use colours (auto: only on a terminal)")
    add("--debug", action="store_true", default=unset, help="print a traceback with every error")


def _add_list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="crashes at or after TIME")
    add("-U", "--until", metavar="TIME", help="crashes at or before TIME")
    add("--kind", choices=KINDS, help="crashes of this kind only")
    add("--signature", metavar="SIGNATURE", help="crashes with this signature only")
    add(
        "-n", "--lines", dest="limit", type=_positive, metavar="N", help="only the newest N crashes"
    )
    add("-1", dest="limit", action="store_const", const=1, help="only the newest crash")
    add("-r", "--reverse", action="store_true", help="list newest first")
    _add_json(parser)


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


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_kdump(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--allow-deletion",
        action="store_true",
        help="let crashd.service delete dumps outside of /var/crash (makes a drop-in)",
    )


def _add_newest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-1", dest="newest", action="store_true", help="the newest crash of all")


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    parser.add_argument(
        "-a", "--all", action="store_true", help="also show environment, maps and limits"
    )
    _add_json(parser)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", required=True, help="write to FILE, named *.tar.zst")
    add("-f", "--force", action="store_true", help="replace FILE if it exists")


def _add_top(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="count only crashes at or after TIME")
    add("--new-since", metavar="TIME", help="only signatures first seen since TIME")
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


def _add_debug(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add("--debugger", choices=DEBUGGERS, help="debugger (default: gdb; crash for a kernel)")
    add(
        "-A",
        "--debugger-arguments",
        metavar="ARGS",
        default="",
        help="extra arguments for the debugger",
    )
    add("--vmlinux", metavar="FILE", help="vmlinux of the kernel that crashed")
    add("--as-root", action="store_true", help="run the debugger as root")


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
        usage="crashctl [OPTION...] COMMAND ...",
        description="Show and manage the crashes that crashd has caught.",
        epilog=f"commands:\n{verbs}\n\n"
        "MATCH selects crashes: an id or its beginning, PID, COMM, /path/to/exe, a unit,\n"
        "or FIELD=VALUE.\n\n"
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
        color="auto",
        debug=False,
    )
    top = build_parser()
    place = _find_verb(argv)
    values = top.parse_args(argv[:place], values)
    if place >= len(argv):
        top.error("no command given")
    verb = VERBS.get(argv[place])
    if verb is None:
        top.error(f"unknown command {argv[place]!r}")
    parser = build_verb_parser(verb)
    options, matches = _split(argv[place + 1 :])
    values = parser.parse_intermixed_args(options, values)
    if verb.match:
        values.match = [*values.match, *matches]
        if "" in values.match:
            parser.error("empty MATCH")
        if verb.needs_match and not values.match and not getattr(values, "newest", False):
            parser.error("MATCH is required")
    elif matches:
        parser.error(f"unrecognized arguments: {' '.join(matches)}")
    return verb, values


def _find_verb(argv: Sequence[str]) -> int:
    """Return the index of the first word that is neither an option nor an option's value."""
    place = 0
    while place < len(argv) and argv[place].startswith("-"):
        place += 2 if argv[place] in ("--root", "--color") else 1
    return place


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at `--` into options and MATCHes.

    argparse takes a word with a dash for an option. So the value of each option of _DASHED_VALUES
    is joined to its option: `--since -1h` becomes `--since=-1h`, and `-S -1h` becomes `-S-1h`.
    """
    options: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return options, rest
        if word in _DASHED_VALUES and rest:
            value = rest.pop(0)
            options.append(f"{word}={value}" if word.startswith("--") else word + value)
        else:
            options.append(word)
    return options, []
