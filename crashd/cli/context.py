"""What every verb of crashctl gets: where to look, and how to print."""

from __future__ import annotations

import os
import sys

from crashd.domain.text import printable
from crashd.errors import UsageError
from crashd.records import NamedTuple
from crashd.store.paths import CRASHES, INDEX_NAME, STATE_DIR, Paths

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path
    from typing import TextIO


class Fleet(NamedTuple):
    """Ask a fleet's index instead of this host's (`--fleet`)."""

    dsn: str
    hosts: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    identity: Path | None = None
    """Key that opens encrypted cores."""
    mini: bool = False
    """Fetch only what a mini core needs."""

    @property
    def is_narrow(self) -> bool:
        """Whether only some hosts are asked about."""
        return bool(self.hosts or self.labels)


class Context(NamedTuple):
    """One run of crashctl."""

    root: str
    """Root of all paths, absolute."""
    color: bool
    """Colours on standard output."""
    legend: bool
    """Column headings."""
    quiet: bool
    """No notes on stderr."""
    width: int | None
    """Columns of the terminal; None if standard output is not a terminal."""
    index_files: tuple[Path, ...] | None = None
    """`--file`: read these instead of a store."""
    fleet: Fleet | None = None
    state: str | None = None
    """`--directory`: another store than the one below `root`."""

    @property
    def paths(self) -> Paths:
        """Every path below `root`."""
        from pathlib import Path  # see paths.py

        return Paths(Path(self.root), None if self.state is None else Path(self.state))

    @property
    def state_dir(self) -> str:
        """The store's directory."""
        return os.path.join(self.root, STATE_DIR) if self.state is None else self.state

    @property
    def index_file(self) -> str:
        """The store's index."""
        return os.path.join(self.state_dir, INDEX_NAME)

    @property
    def crashes_dir(self) -> str:
        """The directory of all crashes, from the root of the file system."""
        return os.path.join(_absolute(self.state_dir), CRASHES)

    def core_file(self, crash_id: str, name: str) -> str:
        """Return where the file `name` of a crash is."""
        return os.path.join(self.crashes_dir, crash_id, name)

    def note(self, text: str) -> None:
        """Print a note on stderr: something that is neither data nor an error."""
        if not self.quiet:
            print(f"crashctl: {printable(text)}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, even with --quiet."""
        print(f"crashctl: warning: {printable(text)}", file=sys.stderr)


def open_context(arguments: Namespace, *, out: TextIO, environ: os._Environ[str]) -> Context:
    """Build the context of this run from the options, the terminal and the environment."""
    terminal = out.isatty()
    wanted = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    color = arguments.color
    state = getattr(arguments, "directory", None)
    pattern = getattr(arguments, "file", None)
    return Context(
        root=_absolute(arguments.root),
        color=color == "always" or (color == "auto" and wanted),
        legend=not arguments.no_legend,
        quiet=arguments.quiet,
        width=_columns(out, environ) if terminal else None,
        index_files=None if pattern is None else _matching_files(pattern),
        fleet=_fleet(arguments, environ),
        state=None if state is None else state or ".",
    )


def _absolute(path: str) -> str:
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _fleet(arguments: Namespace, environ: os._Environ[str]) -> Fleet | None:
    hosts, labels = getattr(arguments, "host", None), getattr(arguments, "label", None)
    identity = getattr(arguments, "identity", None)
    if getattr(arguments, "fleet", None) is None:
        for name in ("host", "label", "by", "identity", "mini"):
            if getattr(arguments, name, None):
                raise UsageError(f"--{name} needs --fleet")
        return None
    dsn = arguments.fleet or environ.get("CRASHD_FLEET", "")
    if not dsn and not {"PGHOST", "PGSERVICE", "PGDATABASE"} & set(environ):
        raise UsageError(
            "no fleet is named", hint="use --fleet=DSN, or set CRASHD_FLEET (see crashctl(1))"
        )
    pairs = [label.partition("=") for label in labels or ()]
    if not all(name and equals for name, equals, _ in pairs):
        raise UsageError("--label is not of the form NAME=VALUE")
    from pathlib import Path

    return Fleet(
        dsn,
        tuple(hosts or ()),
        tuple((name, value) for name, _, value in pairs),
        None if identity is None else Path(identity),
        bool(getattr(arguments, "mini", False)),
    )


def _matching_files(pattern: str) -> tuple[Path, ...]:
    from glob import glob  # few calls have --file
    from pathlib import Path

    return tuple(Path(name) for name in sorted(glob(pattern)))


def _columns(out: TextIO, environ: os._Environ[str]) -> int:
    set_by_hand = environ.get("COLUMNS", "")
    if set_by_hand.isascii() and set_by_hand.isdigit() and int(set_by_hand[:6]) > 0:
        return int(set_by_hand[:6])
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except OSError:
        return 80
