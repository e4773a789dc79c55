"""`crashctl`: parses, dispatches, and turns errors into a message and an exit status.

Imports nothing heavy: a verb's module, and what that module needs, is loaded when the verb runs.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from io import FileIO, TextIOWrapper

from crashd import __version__
from crashd.errors import CrashdError, reason_of

TYPE_CHECKING = False  # as typing's, which takes as long to load as all that --version needs
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from crashd.cli.verbs import Verb

INTERRUPTED = 130
"""128 + SIGINT, as in a shell."""
_NOT_PERMITTED = 3
_ENDED_BY_PYTHON = frozenset({"atexit", "threading"})
"""What has things to do at the end."""
_LONG = ("follow", "debug")
"""Verbs that may run for days."""


def command() -> NoReturn:
    """Run `crashctl` as a process of its own, and end it."""
    status = main()
    if not _ENDED_BY_PYTHON & sys.modules.keys():
        try:
            sys.stderr.flush()  # standard output is flushed already
        finally:
            os._exit(status)  # taking the interpreter apart takes a sixth of a listing
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crashctl`; return its exit status (crashctl(1))."""
    given = sys.argv[1:] if argv is None else argv
    collects = gc.isenabled()
    gc.disable()  # looking for cycles takes a seventh of a long listing, and finds none
    try:
        return _main(given)
    finally:
        if collects:
            gc.enable()


def _main(given: Sequence[str]) -> int:
    _open_streams()
    try:
        status = _run(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _leave(INTERRUPTED)
    except BrokenPipeError:
        return _leave(1)
    except CrashdError as e:
        return _fail(given, str(e), e.hint, e.exit_code)
    except OSError as e:
        return _fail(given, *_explain(e))
    return status


def _open_streams() -> None:
    """Open /dev/null as each closed standard descriptor, so that no file of ours becomes one."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = TextIOWrapper(FileIO(1, "w", closefd=False))
    if sys.stderr is None:
        sys.stderr = TextIOWrapper(FileIO(2, "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(argv: Sequence[str]) -> int:
    if list(argv) == ["--version"]:
        print(f"crashctl {__version__}")
        return 0
    verb, arguments = _parse(argv)
    if verb.name in _LONG:
        gc.enable()
    from crashd.cli.context import open_context

    if any("=" in term for term in getattr(arguments, "match", ())):
        from crashd.cli.names import numbered

        arguments.match = numbered(arguments.match)
    context = open_context(arguments, out=sys.stdout, environ=os.environ)
    place = verb.module, verb.function
    if context.fleet is not None:
        from crashd.cli.verbs import FLEET_VERBS

        place = FLEET_VERBS[verb.name] or place
    __import__(f"crashd.cli.{place[0]}")  # as importlib.import_module does, without importlib
    run: Callable[..., int] = getattr(sys.modules[f"crashd.cli.{place[0]}"], place[1])
    if not verb.pages or context.width is None or arguments.no_pager:
        return run(context, arguments)
    from crashd.cli.pager import paging

    terminal, status = sys.stdout, 0
    try:
        with paging(terminal, context.width) as sys.stdout:
            status = run(context, arguments)
    finally:
        sys.stdout = terminal
    return status


def _parse(argv: Sequence[str]) -> tuple[Verb, Any]:
    from crashd.cli.quick import parse_quickly

    found = parse_quickly(argv)
    if found is not None:
        return found
    from crashd.cli.arguments import parse

    return parse(argv)


def _explain(error: OSError) -> tuple[str, str | None, int]:
    what = "input/output" if error.filename is None else os.fsdecode(error.filename)
    text = f"{what}: {reason_of(error)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return text, "run as root", _NOT_PERMITTED
    return text, None, 1


def _fail(argv: Sequence[str], message: str, hint: str | None, status: int) -> int:
    from crashd.domain.text import printable

    if "--debug" in argv:
        import traceback

        traceback.print_exc()
    try:
        print(f"crashctl: {printable(message)}", file=sys.stderr)
        if hint:
            print(f"  {printable(hint)}", file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        pass  # stderr is closed; the exit status still reports the error
    return _leave(status)


def _leave(status: int) -> int:
    """Return `status`; keep the interpreter from complaining about output that nobody reads."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    return status
