"""The command line of crashctl: its verbs, their options, and how they are parsed.

Imports argparse only: what a verb needs is imported when it runs. The man page and the completions
hold the same options; tests/unit/test_docs.py compares them.
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
    """One verb: its name, what it does, and where the function is that does it."""

    name: str
    summary: str
    module: str
    function: str
    match: str | None
    """How MATCH stands in the usage; None where the verb takes none."""
    needs_match: bool = False


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("list", "list crashes, the newest last", "show.listing", "list_crashes", "[MATCH...]"),
        Verb("info", "show all that is known of one crash", "show.listing", "show", "[MATCH...]"),
        Verb("dump", "write the core of one crash", "open.dump", "dump", "MATCH...", True),
        Verb("debug", "open the core in a debugger", "open.debug", "debug", "MATCH...", True),
        Verb(
            "bundle", "pack a crash for another machine", "open.bundle", "bundle", "MATCH...", True
        ),
        Verb("top", "list signatures, the most frequent first", "show.top", "top", "[MATCH...]"),
        Verb("analyze", "have a crash analysed again", "show.top", "analyze", "MATCH...", True),
        Verb(
            "delete", "delete crashes and their cores", "manage.change", "delete", "MATCH...", True
        ),
        Verb("pin", "keep crashes from being deleted", "manage.change", "pin", "MATCH...", True),
        Verb("unpin", "undo pin", "manage.change", "unpin", "MATCH...", True),
        Verb("vacuum", "delete what retention gives up", "manage.vacuum", "vacuum", None),
        Verb("status", "tell how the daemon is", "manage.status", "status", None),
        Verb("verify", "compare the store with its index", "manage.verify", "verify", None),
        Verb("reindex", "rebuild the index from the store", "manage.change", "reindex", None),
        Verb("install", "register as the kernel's crash handler", "manage.setup", "install", None),
        Verb("uninstall", "give the registration back", "manage.setup", "uninstall", None),
        Verb("stats", "draw how often what crashed", "show.stats", "stats", "[MATCH...]"),
        Verb("report", "write a page about the crashes", "show.report", "report", "[MATCH...]"),
        Verb("follow", "print crashes as they happen", "show.listing", "follow", None),
        Verb(
            "kdump",
            "tell whether a crash of the kernel would leave a dump",
            "check.kdump",
            "kdump",
            None,
        ),
        Verb("doctor", "check that everything is in place", "check.doctor", "doctor", None),
    )
}


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Make a formatter of fixed width: to ask for the terminal's, argparse loads half a library."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=HELP_WIDTH)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        verb = self.prog.removeprefix("crashctl").strip()
        raise UsageError(f"{verb}: {message}" if verb else message, hint=f"see {self.prog} --help")


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return number


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that stand before or after the verb; set ones win over those not set."""
    add = parser.add_argument
    unset = argparse.SUPPRESS
    add("-h", "--help", action="help", default=unset, help="show this help and exit")
    add("--version", action="version", version=f"crashctl {__version__}", help="show the version")
    add("--root", metavar="DIR", default=unset, help="put every path under DIR ($CRASHD_ROOT)")
    add("-q", "--quiet", action="store_true", default=unset, help="no notes on stderr")
    add("--no-legend", action="store_true", default=unset, help="no column headings")
    add("--color", choices=COLORS, default=unset, help="colours (auto: on a terminal)")
    add("--debug", action="store_true", default=unset, help="show a traceback with an error")


def _add_list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="crashes at or after TIME")
    add("-U", "--until", metavar="TIME", help="crashes at or before TIME")
    add("--kind", choices=KINDS, help="crashes of this kind only")
    add("--signature", metavar="SIGNATURE", help="crashes with this signature only")
    add("-n", "--lines", dest="limit", type=_positive, metavar="N", help="the newest N only")
    add("-1", dest="limit", action="store_const", const=1, help="the newest only")
    add("-r", "--reverse", action="store_true", help="the newest first")
    _add_json(parser)


def _add_span(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="crashes at or after TIME (default: a day before)")
    add("-U", "--until", metavar="TIME", help="crashes at or before TIME (default: now)")
    add("--kind", choices=KINDS, help="crashes of this kind only")


def _add_stats(parser: argparse.ArgumentParser) -> None:
    _add_span(parser)
    add = parser.add_argument
    add("-n", "--lines", dest="limit", type=_positive, metavar="N", help="N bars of a sort")
    _add_json(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_span(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", help="write to FILE (- or none: standard output)")
    add("-f", "--force", action="store_true", help="replace FILE if it exists")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _add_newest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-1", dest="newest", action="store_true", help="the newest (of all)")


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    parser.add_argument("-a", "--all", action="store_true", help="environment, maps, limits too")
    _add_json(parser)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    _add_newest(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", required=True, help="write to FILE.tar.zst")
    add("-f", "--force", action="store_true", help="replace FILE if it exists")


def _add_top(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--since", metavar="TIME", help="crashes at or after TIME only")
    add("--new-since", metavar="TIME", help="signatures first seen at or after TIME only")
    add("--kind", choices=KINDS, help="crashes of this kind only")
    add("-n", "--lines", dest="limit", type=_positive, metavar="N", default=20, help="as many (20)")
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
    add("--debugger", choices=DEBUGGERS, help="which one (default: gdb; crash for the kernel's)")
    add("-A", "--debugger-arguments", metavar="ARGS", default="", help="more arguments for it")
    add("--vmlinux", metavar="FILE", help="the kernel that a kernel's dump is of")
    add("--as-root", action="store_true", help="run it as root")


def _add_delete(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-f", "--force", action="store_true", help="delete pinned ones too")
    add("-y", "--yes", action="store_true", help="do not ask")


def _add_vacuum(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")
    _add_json(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--deep", action="store_true", help="decompress every core, too")
    add("--strict", action="store_true", help="--deep, and tell of every file that is nobody's")
    _add_json(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--crash", action="store_true", help="really crash a process, and check")
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
    "kdump": _add_json,
    "follow": _add_json,
}


def build_parser() -> Parser:
    """Build the parser of what stands before the verb."""
    verbs = "\n".join(f"  {verb.name:<10} {verb.summary}" for verb in VERBS.values())
    parser = Parser(
        prog="crashctl",
        usage="crashctl [OPTION...] COMMAND ...",
        description="Look at and manage the crashes that crashd has caught.",
        epilog=f"commands:\n{verbs}\n\n"
        "MATCH: an id or its beginning, PID, COMM, /path/to/exe, a unit, or FIELD=VALUE.\n"
        "Exit status: 0 done, 1 nothing matched or a check failed, 2 usage, 3 not permitted,\n"
        "4 store or daemon not available. More in crashctl(1).",
        formatter_class=_formatter,
        allow_abbrev=False,
        add_help=False,
    )
    _add_common(parser)
    return parser


def build_verb_parser(verb: Verb) -> Parser:
    """Build the parser of one verb's own options and MATCHes."""
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
        UsageError: they are wrong.
        SystemExit: `--help` or `--version` has been answered.

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
            parser.error("an empty MATCH")
        if verb.needs_match and not values.match and not getattr(values, "newest", False):
            parser.error("MATCH is needed")
    elif matches:
        parser.error(f"unrecognized arguments: {' '.join(matches)}")
    return verb, values


def _find_verb(argv: Sequence[str]) -> int:
    """Find the first word that is neither an option nor an option's value."""
    place = 0
    while place < len(argv) and argv[place].startswith("-"):
        place += 2 if argv[place] in ("--root", "--color") else 1
    return place


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at `--`; tie values that begin with a dash to their option."""
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
