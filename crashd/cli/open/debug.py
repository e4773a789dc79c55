"""`debug`: opens the core of a crash in a debugger that does not run as root.

A core is hostile input: the crashed process chose the file names, byte code and scripts in it. So
the debugger reads no start-up files, loads nothing automatically, and runs as another user when
root calls crashctl (SECURITY B6, B7).
"""

import argparse
import contextlib
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crashd.cli.context import Context
from crashd.cli.open.crashfiles import CrashFiles, find_files
from crashd.cli.open.debugroot import DebugRoot, lay_out, warn_of_missing
from crashd.cli.open.dump import opened_core
from crashd.cli.open.foreground import run
from crashd.cli.open.scratch import (
    descriptor_path,
    give,
    nameless_file,
    private_directory,
    write_core,
)
from crashd.cli.open.session import User
from crashd.cli.source import newest, open_source
from crashd.cli.sourcetypes import Source
from crashd.domain.crash.access import Credentials
from crashd.domain.crash.model import from_json
from crashd.edge.sandbox.loanedid import loan
from crashd.errors import ConfigError, CrashdError, FormatError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from crashd.configuration.keys import AnalysisSection, Settings

PACKAGES = {"gdb": "gdb", "lldb": "lldb", "drgn": "python3-drgn", "crash": "crash"}
_DEBUG_DIRECTORY = "/usr/lib/debug"
_NO_ID = 0xFFFFFFFF


class Given(NamedTuple):
    """What the debugger may use."""

    files: DebugRoot
    debuginfod: bool
    """Whether it may fetch missing files."""


def debug(context: Context, arguments: argparse.Namespace) -> int:
    """Run a debugger on the newest crash that matches; return its exit status."""
    try:
        extra = shlex.split(arguments.debugger_arguments)
    except ValueError as e:
        raise UsageError(f"debug: {arguments.debugger_arguments!r}: {e}") from e
    all_settings = _settings(context)
    settings = all_settings.analysis
    if not settings.debuginfod:
        os.environ.pop("DEBUGINFOD_URLS", None)  # not every debugger has an option for it
    if len(arguments.match) == 1 and arguments.match[0].endswith(".tar.zst"):
        directories = (*all_settings.kdump.vmlinux_dirs, *settings.build_id_dirs)
        return _debug_bundle(context, arguments, extra, settings, directories)
    source = open_source(context)
    try:
        row = newest(context, source, arguments)
        name = choose_debugger(arguments.debugger, str(row.get("kind")), os.environ)
        program = find_debugger(name)
        if row.get("kind") == "kernel":
            from crashd.cli.open.kerneldebug import kernel_command

            directories = (*all_settings.kdump.vmlinux_dirs, *settings.build_id_dirs)
            doc = source.info(row["id"])
            # as root: nobody else may read the dump, and only root could write it
            with kernel_command(context, arguments, doc, program, directories) as (argv, keep):
                return run([*argv, *extra], None, keep)
        with (
            choose_user(as_root=arguments.as_root) as user,
            nameless_file() as core,
            _laid_out(context, source, row["id"], settings, user) as (given, directory),
        ):
            with opened_core(context, source, row) as chunks:
                write_core(core, chunks)
            argv = build_command(name, program, extra, given, give(core, user))
            return run(argv, user, [core, directory])
    finally:
        source.close()


def _debug_bundle(
    context: Context,
    arguments: argparse.Namespace,
    extra: Sequence[str],
    settings: "AnalysisSection",
    vmlinux_dirs: Iterable[str],
) -> int:
    """Run a debugger on a bundle, written here or elsewhere."""
    from crashd.cli.open.kerneldebug import VmlinuxSearch, bundle_command
    from crashd.cli.open.unbundle import unpack

    if arguments.debugger:
        find_debugger(arguments.debugger)  # that it is missing is said before the unpacking
    with (
        choose_user(as_root=arguments.as_root) as user,
        unpack(Path(arguments.match[0])) as unpacked,
    ):
        kind = "process" if unpacked.kernel is None else "kernel"
        name = choose_debugger(arguments.debugger, kind, os.environ)
        program = find_debugger(name)
        if unpacked.kernel is not None:
            search = VmlinuxSearch(context, vmlinux_dirs, arguments.vmlinux)
            with bundle_command(unpacked.kernel, search, program, user) as (argv, keep):
                return run([*argv, *extra], user, keep)
        if unpacked.exe is None:
            context.warn("the bundle has no executable: its symbols are missing")
        # the debugger's only way in: only root can enter the directory above
        root = descriptor_path(unpacked.root)
        exe = None if unpacked.exe is None else root / unpacked.exe
        files = DebugRoot(root, root, root / _DEBUG_DIRECTORY.lstrip("/"), exe, ())
        given = Given(files, settings.debuginfod)
        argv = build_command(name, program, extra, given, give(unpacked.core, user))
        return run(argv, user, [unpacked.core, unpacked.root])


def choose_debugger(asked: str | None, kind: str, environ: Mapping[str, str]) -> str:
    """Return the name, or path, of the debugger to use; SYSTEMD_DEBUGGER is for processes."""
    if asked:
        return asked
    return "crash" if kind == "kernel" else environ.get("SYSTEMD_DEBUGGER") or "gdb"


def find_debugger(name: str) -> str:
    """Find a debugger in PATH.

    Raises:
        UnsupportedError: it is not installed.
    """
    program = shutil.which(name)
    if program is None:
        package = PACKAGES.get(name, "")
        raise UnsupportedError(
            f"debugger {name} is not installed",
            hint=f"apt-get install {package}" if package else None,
        )
    return program


@contextlib.contextmanager
def _laid_out(
    context: Context, source: Source, crash_id: str, settings: "AnalysisSection", user: User | None
) -> Iterator[tuple[Given, int]]:
    """Lay out the files of a crash that the debugger may read; warn about missing ones.

    Also yields the descriptor of their directory. The paths go through it, because only the caller
    can enter the directory above.
    """
    found = _find_files(context, source, crash_id, settings)
    with private_directory() as above:
        directory = above / "files"
        directory.mkdir()
        directory.chmod(0o755)
        try:
            warn_of_missing(context, found)
            files = lay_out(found, directory, _reader(user))
        finally:
            for file in found.files:
                for fd in file.descriptors:
                    os.close(fd)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield Given(files.seen_from(directory, descriptor_path(fd)), settings.debuginfod), fd
        finally:
            os.close(fd)


def _find_files(
    context: Context, source: Source, crash_id: str, settings: "AnalysisSection"
) -> CrashFiles:
    stored = source.open_core(crash_id)
    try:
        directories = (*settings.build_id_dirs_bytes, os.fsencode(context.paths.debug_cache))
        return find_files(context.paths, from_json(source.info(crash_id)), stored, directories)
    except FormatError as e:
        context.warn(f"{e}: no symbols")
        return CrashFiles([], b"", frozenset())
    finally:
        os.close(stored)


def _reader(user: User | None) -> Credentials:
    if user is not None:
        return Credentials(user.uid, user.gid)
    euid, groups = os.geteuid(), frozenset(os.getgroups())
    return Credentials(euid, os.getegid(), groups, overrides=euid == 0)


def _settings(context: Context) -> "Settings":
    from crashd.configuration import files as configfiles
    from crashd.configuration import keys as config

    try:
        return configfiles.load(context.paths)
    except ConfigError as e:
        context.warn(f"{e}, ignoring")  # must not prevent debugging
        return config.Settings()


def build_command(
    name: str, program: str, extra: Sequence[str], given: Given, core: Path
) -> list[str]:
    """Build the debugger's command line, so that it uses the given files and no others.

    An unknown debugger gets executable and core as from coredumpctl.
    """
    files = given.files
    kind = Path(name).name
    if kind.startswith("gdb") or kind.endswith("gdb"):
        fetches = "on" if given.debuginfod else "off"
        options = ["set auto-load off", f"set debuginfod enabled {fetches}"]
        options += [f"set sysroot {files.root}", f"set solib-search-path {files.libraries}"]
        options.append(f"set debug-file-directory {files.debug}:{_DEBUG_DIRECTORY}")
        quiet = [program, "-nx", "-nh", *_each("-iex", options), *extra]
        return [*quiet, str(files.exe), str(core)] if files.exe else [*quiet, "-c", str(core)]
    if kind.startswith("lldb"):
        fetches = "true" if given.debuginfod else "false"
        options = ["settings set target.load-script-from-symbol-file false"]
        options.append(f"settings set symbols.enable-external-lookup {fetches}")
        options.append(f"settings append target.exec-search-paths {files.libraries}")
        options.append(
            f"settings append target.debug-file-search-paths {files.debug} {_DEBUG_DIRECTORY}"
        )
        quiet = [program, "--no-lldbinit", *_each("--one-line-before-file", options)]
        exe = [str(files.exe)] if files.exe else []
        return [*quiet, *extra, "--core", str(core), *exe]
    if kind == "drgn":
        own = ["--no-symbols-by", "standard"] if given.debuginfod else ["--no-default-symbols"]
        symbols = _each("-s", map(str, files.symbols))
        return [program, *own, *symbols, *extra, "-c", str(core)]
    if kind == "crash":
        return [program, *extra, str(core)]
    return [program, *extra, *([str(files.exe)] if files.exe else []), "-c", str(core)]


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def find_caller(environ: Mapping[str, str]) -> User | None:
    """Return the user who called sudo; None if sudo was not used, or by root."""
    uid, gid = environ.get("SUDO_UID", ""), environ.get("SUDO_GID", "")
    if not all(text.isascii() and text.isdigit() and len(text) <= 10 for text in (uid, gid)):
        return None
    # setresuid(2) takes -1 as "do not change"
    possible = 0 < int(uid) < _NO_ID and int(gid) < _NO_ID
    return User(int(uid), int(gid)) if possible else None


@contextlib.contextmanager
def choose_user(*, as_root: bool) -> Iterator[User | None]:
    """Choose the debugger's user: the one who called sudo, else an id that nothing else has.

    Yields None if the user stays the same: crashctl does not run as root, or --as-root is given.
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
