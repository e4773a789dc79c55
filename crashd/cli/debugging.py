"""`debug`: the core of one crash in a debugger, which does not run as root.

A core is hostile input to a debugger: file names, byte code and scripts in it are the crashed
process's own. So it gets no start-up files, loads nothing by itself, and as root it is run as
another user (SECURITY B6, B7).
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from crashd.cli.context import Context
from crashd.cli.dumping import opened_core, terminable, write_file
from crashd.cli.source import newest, open_source
from crashd.domain.text import printable
from crashd.errors import CrashdError, UnsupportedError, UsageError, reason_of

PROC = Path("/proc")
PACKAGES = {"gdb": "gdb", "drgn": "python3-drgn", "crash": "crash"}
_LOANED_UIDS = range(61184, 65520)
"""What systemd gives out for DynamicUser= (systemd.exec(5)): no account has one of these."""
_CANNOT_RUN, _NOT_FOUND = 126, 127  # as a shell says it


class User(NamedTuple):
    """Whom the debugger runs as."""

    uid: int
    gid: int


def debug(context: Context, arguments: argparse.Namespace) -> int:
    """Run a debugger on the newest crash that matches; pass its exit status on."""
    try:
        extra = shlex.split(arguments.debugger_arguments)
    except ValueError as e:
        raise UsageError(f"debug: {arguments.debugger_arguments!r}: {e}") from e
    if len(arguments.match) == 1 and arguments.match[0].endswith(".tar.zst"):
        return _debug_bundle(context, arguments, extra)
    source = open_source(context)
    try:
        row = newest(context, source, arguments.match)
        name = arguments.debugger or ("crash" if row.get("kind") == "kernel" else "gdb")
        program = find_debugger(name)
        if row.get("kind") == "kernel":
            from crashd.cli.kerneldebug import kernel_command

            # as root: the dump is root's alone, and so were all who could write it
            command = kernel_command(context, arguments, source.info(row["id"]), program)
            return run([*command, *extra], None)
        user = None if arguments.as_root else choose_user(os.geteuid(), os.environ)
        with private_directory(user) as directory, opened_core(context, source, row) as chunks:
            core = directory / "core"
            write_file(core, chunks, force=False)
            if user is not None:
                os.chown(core, user.uid, user.gid, follow_symlinks=False)
            argv = build_command(
                name, program, extra, find_exe(context, source.info(row["id"])), core
            )
            return run(argv, user)
    finally:
        source.close()


def _debug_bundle(context: Context, arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Run a debugger on what `crashctl bundle` wrote, here or elsewhere."""
    from crashd.cli.bundling import extract

    name = arguments.debugger or "gdb"
    program = find_debugger(name)
    user = None if arguments.as_root else choose_user(os.geteuid(), os.environ)
    with private_directory(user) as directory:
        core, exe, root = extract(Path(arguments.match[0]), directory)
        if exe is None:
            context.warn("the bundle has no executable: no symbols of it")
        for path in (core, *directory.rglob("root/**/*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        root.chmod(0o755)
        sysroot = ["-iex", f"set sysroot {root}"] if name == "gdb" else []
        argv = build_command(
            name, program, [*sysroot, *extra], None if exe is None else str(exe), core
        )
        return run(argv, user)


def find_debugger(name: str) -> str:
    """Find a debugger in PATH.

    Raises:
        UnsupportedError: it is not installed.

    """
    program = shutil.which(name)
    if program is None:
        raise UnsupportedError(
            f"debugger {name} is not installed", hint=f"apt-get install {PACKAGES[name]}"
        )
    return program


def find_exe(context: Context, doc: dict[str, Any]) -> str | None:
    """Name the executable for the debugger; None where it is no longer, or not on this host."""
    exe, root = doc.get("exe"), doc.get("root")
    if not isinstance(exe, str) or not exe.startswith("/"):
        return None
    if root not in (None, "", "/"):
        context.warn(
            f"executable {printable(exe)} is inside of {printable(root)}: no symbols of it"
        )
        return None
    if not Path(exe).is_file():
        context.warn(f"executable {printable(exe)} is not there: no symbols of it")
        return None
    return exe


def build_command(
    name: str, program: str, extra: Sequence[str], exe: str | None, core: Path
) -> list[str]:
    """Build the debugger's command line."""
    if name == "gdb":
        quiet = [program, "-nx", "-nh", "-iex", "set auto-load off", *extra]
        return [*quiet, exe, str(core)] if exe else [*quiet, "-c", str(core)]
    if name == "drgn":
        return [program, *extra, "-c", str(core)]
    return [program, *extra, str(core)]


def choose_user(euid: int, environ: "os._Environ[str] | dict[str, str]") -> User | None:
    """Choose whom the debugger runs as: who called sudo, else a user that nobody is.

    None where crashctl is not root and nothing need be changed.
    """
    if euid != 0:
        return None
    uid, gid = environ.get("SUDO_UID", ""), environ.get("SUDO_GID", "")
    if uid.isascii() and uid.isdigit() and gid.isascii() and gid.isdigit() and int(uid) != 0:
        return User(int(uid), int(gid))
    used = {entry.stat().st_uid for entry in os.scandir(PROC) if entry.name.isdigit()}
    loaned = next((number for number in _LOANED_UIDS if number not in used), None)
    if loaned is None:
        raise CrashdError("no free user id to run the debugger as", hint="use --as-root")
    return User(loaned, loaned)


@contextlib.contextmanager
def private_directory(user: User | None) -> Iterator[Path]:
    """Make a directory for the core, and remove it at the end.

    Root's stays root's, and only lets `user` through to what has been given to him.
    """
    # not /tmp, which is often in memory
    base = os.environ.get("TMPDIR") or "/var/tmp"
    directory = Path(tempfile.mkdtemp(prefix="crashctl-", dir=base))
    try:
        if user is not None:
            directory.chmod(0o711)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(argv: Sequence[str], user: User | None) -> int:
    """Run the debugger in the foreground; return its exit status as a shell would.

    SIGINT and SIGQUIT of the terminal are the debugger's; SIGTERM and SIGHUP are passed on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with terminable():
        child = os.fork()
        if child == 0:
            _exec(argv, user)
        previous = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGQUIT)}

        def pass_on(number: int, _frame: FrameType | None) -> None:
            os.kill(child, number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, pass_on)
        try:
            _, status = os.waitpid(child, 0)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _home(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/nonexistent"


def _exec(argv: Sequence[str], user: User | None) -> NoReturn:
    """Become the debugger; never returns to the code of the parent."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        environ = dict(os.environ)
        if user is not None:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            environ["HOME"] = _home(user.uid)
        os.execve(argv[0], list(argv), environ)
    except OSError as e:
        what = printable(f"crashctl: cannot run {argv[0]}: {reason_of(e)}") + "\n"
        os.write(2, what.encode("utf-8", "backslashreplace"))
        os._exit(_NOT_FOUND if isinstance(e, FileNotFoundError) else _CANNOT_RUN)
    finally:
        os._exit(_CANNOT_RUN)
