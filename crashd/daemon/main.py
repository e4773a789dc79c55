"""`crashd`: the command line of the daemon, and its first steps.

Kept light on purpose: the workers' nursery is forked from here, before pydantic, SQLite and the
exporter are imported, so that a worker is small.
"""

import argparse
import gc
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from crashd import __version__
from crashd.daemon.intake.pool import Nursery
from crashd.domain.text import printable
from crashd.edge.capture.process import give_memory_back, make_undumpable, set_oom_score
from crashd.errors import CrashdError
from crashd.store.daemonlock import lock_root
from crashd.store.paths import Paths
from crashd.store.trusted import refuse_untrusted

DAEMON_OOM_SCORE = -900
DOCUMENT_MAX = 16 << 20
log = logging.getLogger("crashd")


class _Formatter(logging.Formatter):
    """Escapes characters that are invisible in a log; messages may hold names that a user chose."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format one record without its traceback."""
        return "\n".join(printable(line) for line in super().formatMessage(record).split("\n"))


class _JournalFormatter(_Formatter):
    """Prefixes lines with their syslog level, as sd-daemon(3) requires on stderr."""

    _LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))

    def format(self, record: logging.LogRecord) -> str:
        """Format one record; each of its lines gets the prefix."""
        level = next(number for limit, number in self._LEVELS if record.levelno >= limit)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).split("\n"))


def set_up_logging(environ: "os._Environ[str] | dict[str, str]") -> None:
    """Log to stderr: with level prefixes for the journal, otherwise with the time."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(prog="crashd", description="Collect the crashes of this host.")
    parser.add_argument("--version", action="version", version=f"crashd {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    run = verbs.add_parser("run", help="run the daemon in the foreground")
    run.add_argument(
        "--no-register",
        action="store_true",
        help="leave kernel.core_pattern and its companions alone",
    )
    check = verbs.add_parser("check-config", help="check the configuration and exit")
    check.add_argument(
        "file", nargs="*", type=Path, help="files to check instead of the installed ones"
    )
    hooks = verbs.add_parser(
        "hooks", help="run the hooks for one crash, whose JSON is the standard input"
    )
    for verb in (run, check, hooks):
        verb.add_argument(
            "--root",
            type=Path,
            default=Path(os.environ.get("CRASHD_ROOT", "/")),
            help="put every path under this directory (default: $CRASHD_ROOT or /)",
        )
    return parser


def check_config(paths: Paths, files: Sequence[Path]) -> int:
    """Load the configuration as the daemon would; errors are raised."""
    from crashd.configuration import files as configfiles
    from crashd.daemon.web.webconfig import load_guard
    from crashd.edge.host.hooks import Webhook

    settings = configfiles.load_files(files) if files else configfiles.load(paths)
    load_guard(settings.http.web_config)
    hooks = settings.hooks
    Webhook(hooks.url, hooks.body, hooks.headers_file).read_headers()
    return 0


def run_hooks(paths: Paths) -> int:
    """Run the hooks, and print failures as JSON; for crashd-hooks@.service."""
    from crashd.configuration import files as configfiles
    from crashd.edge.host.hooks import Webhook, run_all

    refuse_untrusted(paths)
    settings = configfiles.load(paths).hooks
    document = sys.stdin.buffer.read(DOCUMENT_MAX)
    webhook = Webhook(settings.url, settings.body, settings.headers_file)
    failures = run_all(paths.hooks, webhook, document, settings.timeout_seconds)
    print(json.dumps(failures))
    return 0


def run(paths: Paths, *, register: bool) -> int:
    """Run the daemon until a signal stops it; return its exit status."""
    set_up_logging(os.environ)
    make_undumpable()
    give_memory_back()
    refuse_untrusted(paths, handler=register)
    given = os.environ.get("LISTEN_FDS", "")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid()) and given.isdigit()
    # first: the nursery must not hold a lock, a socket, or any of the imports below
    nursery = Nursery(int(given) if ours else 0)
    try:
        gc.disable()  # what is imported stays: looking for garbage in it is a tenth of the start
        from crashd.configuration import files as configfiles
        from crashd.daemon.service import Service

        gc.enable()
        gc.freeze()
        set_oom_score(DAEMON_OOM_SCORE)
        settings = configfiles.load(paths)
        lock = lock_root(paths)
        try:
            return Service(paths, settings, nursery, register=register).run()
        finally:
            os.close(lock)
    finally:
        nursery.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crashd`; return its exit status."""
    arguments = build_parser().parse_args(argv)
    paths = Paths(arguments.root.absolute())
    try:
        if arguments.verb == "check-config":
            return check_config(paths, arguments.file)
        if arguments.verb == "hooks":
            return run_hooks(paths)
        return run(paths, register=not arguments.no_register)
    except CrashdError as e:
        print(f"crashd: {e}", file=sys.stderr)
        if e.hint:
            print(f"  {e.hint}", file=sys.stderr)
        return e.exit_code
