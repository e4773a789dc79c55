"""The files that a debugger is given: a private root with what has the crash's own build-ids, so
that it finds another program's functions nowhere.

    root/PATH       executable and libraries, at the paths that the core names
    libraries/NAME  the same ones by name and soname: the loader knew them by a link
    debug/.build-id/AB/CDEF.debug

Data files that were mapped are empty in it: nothing tells whether they are still the same, and gdb
warns of each that is not there.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from crashd.cli.context import Context
from crashd.cli.open.crashfiles import FILE_MAX, CrashFiles
from crashd.cli.open.scratch import write_core
from crashd.domain.crash.access import Credentials
from crashd.domain.elf.modules import path_parts
from crashd.domain.text import printable
from crashd.edge.sandbox.modulefiles import open_as, read_soname

DATA_MAX = 4096
_WARNED_MAX = 5


@dataclass(frozen=True, slots=True)
class DebugRoot:
    """Where a crash's files are laid out."""

    root: Path
    libraries: Path
    debug: Path
    exe: Path | None
    symbols: tuple[Path, ...]
    """Each file: what has debug information of its own comes before its module."""

    def seen_from(self, directory: Path, other: Path) -> "DebugRoot":
        """Return the same with other paths: as they are where `directory` is called `other`."""

        def moved(path: Path) -> Path:
            return other / path.relative_to(directory)

        return DebugRoot(
            moved(self.root),
            moved(self.libraries),
            moved(self.debug),
            None if self.exe is None else moved(self.exe),
            tuple(map(moved, self.symbols)),
        )


def lay_out(found: CrashFiles, directory: Path, reader: Credentials) -> DebugRoot:
    """Lay files out below a private directory, for a debugger that runs as `reader`.

    What `reader` can open where it is, and only root or `reader` can change, becomes a link.
    """
    root, libraries, debug = (directory / name for name in ("root", "libraries", "debug"))
    for made in (root, libraries, debug):
        made.mkdir()
    program, symbols = None, list[Path]()
    by_name: dict[bytes, set[Path]] = defaultdict(set)
    for file in found.files:
        parts = path_parts(file.module.name)
        build_id = file.module.build_id
        if file.debug_fd is not None and build_id is not None:
            target = debug / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
            symbols += _place(file.debug_fd, target, reader)
        if file.fd is None or parts is None:
            continue
        target = root.joinpath(*map(os.fsdecode, parts))
        placed = _place(file.fd, target, reader)
        symbols += placed
        if placed and file.module.name == found.exe:
            program = target
        for name in {parts[-1], read_soname(file.fd) or parts[-1]} if placed else ():
            by_name[name].add(target)
    for name, targets in by_name.items():
        if len(targets) == 1 and path_parts(name) == [name]:
            # relative: the debugger may reach the directory by another path
            os.symlink(os.path.relpath(targets.pop(), libraries), libraries / os.fsdecode(name))
    _make_empty(root, found.data)
    for made in (root, libraries, debug):
        for path, _, _ in os.walk(made):
            os.chmod(path, 0o755)
    return DebugRoot(root, libraries, debug, program, tuple(symbols))


def _make_empty(root: Path, names: Iterable[bytes]) -> None:
    for parts in filter(None, map(path_parts, islice(names, DATA_MAX))):
        target = root.joinpath(*map(os.fsdecode, parts))
        if _make_room(target):
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.fchmod(fd, 0o644)  # whatever the umask is: the debugger may be another user's
            os.close(fd)


def _make_room(target: Path) -> bool:
    """Make the directories above a file; return whether it can be made in them.

    Of names that a core chose, one may lie below another's file, or be too long here.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _place(fd: int, target: Path, reader: Credentials) -> list[Path]:
    """Make `target` a link to an open file, or a copy of it; return it unless it is there, or too
    large.
    """
    status = os.fstat(fd)
    if status.st_size > FILE_MAX or not _make_room(target):
        return []
    path = os.readlink(b"/proc/self/fd/%d" % fd)
    if status.st_uid in (0, reader.uid) and _is_same(path, status, reader):
        os.symlink(os.fsdecode(path), target)
        return [target]
    made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(made, "wb") as out, open(os.dup(fd), "rb") as source:
        # sparse, and no more than there is room for: the file is the crashed user's own
        write_core(out.fileno(), iter(lambda: source.read(1 << 20), b""))
        if reader.uid != os.geteuid() and reader.uid is not None and reader.gid is not None:
            os.fchown(out.fileno(), reader.uid, reader.gid)
    return [target]


def _is_same(path: bytes, status: os.stat_result, reader: Credentials) -> bool:
    fd = open_as(path, reader)
    if fd is None:
        return False
    try:
        return os.path.samestat(os.fstat(fd), status)
    finally:
        os.close(fd)


def warn_of_missing(context: Context, found: CrashFiles) -> None:
    """Say in a line each what there is no file of: the executable first, then libraries."""
    missing = [
        file for file in found.files if file.fd is None and file.module.name.startswith(b"/")
    ]
    missing.sort(key=lambda file: file.module.name != found.exe)
    for file in missing[:_WARNED_MAX]:
        wanted = f"build-id {file.module.build_id}" if file.module.build_id else "no build-id"
        context.warn(
            f"no symbols of {printable(file.module.name)} ({wanted}): "
            f"{printable(file.problem or 'it is too large')}"
        )
    if len(missing) > _WARNED_MAX:
        context.warn(f"and of {len(missing) - _WARNED_MAX} more libraries")
