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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crashd.cli.context import Context
from crashd.cli.dumping import opened_core
from crashd.cli.foreground import User, run
from crashd.cli.scratch import descriptor_path, give, nameless_file, write_core
from crashd.cli.source import newest, open_source
from crashd.domain.text import printable
from crashd.edge.loanedid import loan
from crashd.errors import CrashdError, UnsupportedError, UsageError

PACKAGES = {"gdb": "gdb", "drgn": "python3-drgn", "crash": "crash"}
_NO_ID = 0xFFFFFFFF


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
        with choose_user(as_root=arguments.as_root) as user, nameless_file() as core:
            with opened_core(context, source, row) as chunks:
                write_core(core, chunks)
            exe = find_exe(context, source.info(row["id"]))
            argv = build_command(name, program, extra, exe, give(core, user))
            return run(argv, user, [core])
    finally:
        source.close()


def _debug_bundle(context: Context, arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Run a debugger on what `crashctl bundle` wrote, here or elsewhere."""
    from crashd.cli.unbundling import unpack

    name = arguments.debugger or "gdb"
    program = find_debugger(name)
    with (
        choose_user(as_root=arguments.as_root) as user,
        unpack(Path(arguments.match[0])) as unpacked,
    ):
        if unpacked.exe is None:
            context.warn("the bundle has no executable: no symbols of it")
        # the only way in: the directory above is root's alone
        root = descriptor_path(unpacked.root)
        exe = None if unpacked.exe is None else str(root / unpacked.exe)
        sysroot = ["-iex", f"set sysroot {root}"] if name == "gdb" else []
        core = give(unpacked.core, user)
        argv = build_command(name, program, [*sysroot, *extra], exe, core)
        return run(argv, user, [unpacked.core, unpacked.root])


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
    if not os.path.isfile(exe):  # False also for a name that is too long
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


def find_caller(environ: Mapping[str, str]) -> User | None:
    """Find who called sudo; None where nobody did, or root."""
    uid, gid = environ.get("SUDO_UID", ""), environ.get("SUDO_GID", "")
    if not all(text.isascii() and text.isdigit() and len(text) <= 10 for text in (uid, gid)):
        return None
    # -1 means to setresuid(2) that nothing changes
    possible = 0 < int(uid) < _NO_ID and int(gid) < _NO_ID
    return User(int(uid), int(gid)) if possible else None


@contextlib.contextmanager
def choose_user(*, as_root: bool) -> Iterator[User | None]:
    """Choose whom the debugger runs as: who called sudo, else a user that nothing else is.

    None where crashctl is not root, or is to stay it, and nothing need be changed.
    """
    if as_root or os.geteuid() != 0:
        yield None
    elif (caller := find_caller(os.environ)) is not None:
        yield caller
    else:
        try:
            loaned = loan()
        except CrashdError as e:
            raise CrashdError(f"debug: {e}", hint="use --as-root") from e
        try:
            yield User(loaned.number, loaned.number)
        finally:
            os.close(loaned.fd)
