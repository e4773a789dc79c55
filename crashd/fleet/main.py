"""`crashd-fleet`: prepares the index of a fleet, keeps it up to date, and says how it is."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from crashd import __version__
from crashd.domain.text import printable
from crashd.domain.units import parse_duration
from crashd.errors import CrashdError, UsageError

KEEP_DAYS, CORES_DAYS, CORES_PER_SIGNATURE = 90, 30, 5
DAYS_MAX = 3650
_DAY_NS = 86400 * 10**9


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with argparse's message."""
        raise UsageError(message, hint=f"see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = _Parser(prog="crashd-fleet", description="Index the crashes of a fleet.")
    parser.add_argument("--version", action="version", version=f"crashd-fleet {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name, summary in (
        ("init", "make or migrate the schema, and set the bucket"),
        ("index", "index what hosts write, until stopped"),
        ("reindex", "build the index again from the bucket"),
        ("lifecycle", "print lifecycle rules for the bucket"),
        ("status", "show how far the index is"),
    ):
        text = summary[0].upper() + summary[1:] + "."
        verb = verbs.add_parser(name, help=summary, description=text)
        verb.add_argument(
            "--dsn",
            default=os.environ.get("CRASHD_FLEET", ""),
            metavar="DSN",
            help="PostgreSQL: a connection string or URL ($CRASHD_FLEET; else PGHOST, PGSERVICE)",
        )
        if name in _OPTIONS:
            _OPTIONS[name](verb)
    return parser


def _days(text: str) -> int:
    try:
        days = parse_duration(text) // _DAY_NS
    except CrashdError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if not 1 <= days <= DAYS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1d and {DAYS_MAX}d")
    return days


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text) / 1e9
    except CrashdError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if not 0.05 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 50ms and 1d")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 10000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _add_init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", metavar="URL", help="bucket: s3://, gs://, az:// or file:///")
    add("--keep", type=_days, metavar="TIME", help=f"keep crashes so long (default: {KEEP_DAYS}d)")
    add("--cores-keep", type=_days, metavar="TIME", help=f"and cores (default: {CORES_DAYS}d)")
    add(
        "--cores-per-signature",
        type=_count,
        metavar="N",
        help=f"cores that are enough for a signature (default: {CORES_PER_SIGNATURE})",
    )


def _add_index(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--once", action="store_true", help="index what there is, and end")
    add("--poll", type=_seconds, default=5.0, metavar="TIME", help="list busy hosts so often (5s)")
    add("--idle", type=_seconds, default=120.0, metavar="TIME", help="list others so often (2min)")
    add(
        "--listen",
        default="127.0.0.1:9818",
        metavar="ADDRESS:PORT",
        help="serve metrics here (127.0.0.1:9818); off: nowhere",
    )


def _add_lifecycle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--for", dest="kind", choices=("s3", "gcs", "azure"), help="whose rules")


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


_OPTIONS = {
    "init": _add_init,
    "index": _add_index,
    "lifecycle": _add_lifecycle,
    "status": _add_status,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crashd-fleet`; return its exit status (crashd-fleet(8))."""
    try:
        arguments = build_parser().parse_args(argv)
        _set_up_logging(arguments.verb)
        return _run(arguments)
    except CrashdError as e:
        print(f"crashd-fleet: {printable(str(e))}", file=sys.stderr)
        if e.hint:
            print(f"  {printable(e.hint)}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    try:
        from crashd.fleet import run
    except ImportError as e:
        name = printable(str(e.name))
        if name.partition(".")[0] not in ("psycopg", "obstore"):
            raise
        raise CrashdError(
            f"the module {name} is not installed",
            hint="install python3-psycopg or crashd[fleet-server]",
        ) from e
    if arguments.verb == "init":
        return run.init(arguments)
    if arguments.verb == "index":
        return run.index(arguments)
    if arguments.verb == "reindex":
        return run.reindex(arguments)
    if arguments.verb == "lifecycle":
        return _lifecycle(arguments, run.read_settings(arguments.dsn))
    return run.status(arguments)


def _lifecycle(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    from crashd.fleet.lifecycle import build_rules, kind_of

    url = settings["url"]
    kind = arguments.kind or kind_of(url)
    if kind is None:
        raise UsageError("a directory has no lifecycle rules", hint="print them with --for s3")
    parts = urlsplit(url)
    prefix = "" if parts.scheme in ("file", "https") else parts.path
    rules = build_rules(kind, prefix, settings["keep_days"], settings["cores_days"])
    print(json.dumps(rules, indent=2))
    return 0


class _Formatter(logging.Formatter):
    """Escapes characters that are invisible in a log; prefixes levels for the journal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        text = "\n".join(printable(line) for line in super().format(record).split("\n"))
        if "JOURNAL_STREAM" not in os.environ:
            return text
        level = 3 if record.levelno >= 40 else 4 if record.levelno >= 30 else 6
        return "\n".join(f"<{level}>{line}" for line in text.split("\n"))


def _set_up_logging(verb: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(
        level=logging.INFO if verb == "index" else logging.WARNING, handlers=[handler]
    )


if __name__ == "__main__":
    sys.exit(main())
