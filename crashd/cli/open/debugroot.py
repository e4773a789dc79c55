"""Lays out the files that a debugger reads: a private root, only with the build-ids of the crash.

So the debugger cannot take the functions of another version for those that crashed.

    root/PATH       executable and libraries, at the paths in the core
    libraries/NAME  the same files by name and soname, because the loader may have used a link
    debug/.build-id/AB/CDEF.debug

Mapped data files are empty here: nothing shows whether they are still the same, and gdb warns about
each missing one.
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
from crashd.edge.sandbox.modulefiles import open_as, read_section_build_id, read_soname

DATA_MAX = 4096
_WARNED_MAX = 5


@dataclass(frozen=True, slots=True)
class DebugRoot:
    """The paths of a crash's files."""

    root: Path
    libraries: Path
    debug: Path
    exe: Path | None
    symbols: tuple[Path, ...]
    """Every file; the debug file of a module comes before the module itself."""

    def seen_from(self, directory: Path, other: Path) -> "DebugRoot":
        """Return a copy with other paths: `directory` replaced by `other`."""

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
    """Lay out files below a private directory, for a debugger that runs as `reader`.

    A file becomes a link if `reader` can open it where it lies, and only root or `reader` can
    change it. Every other file is copied.
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
        alternate = read_section_build_id(file.alternate_fd) if file.alternate_fd else None
        if file.alternate_fd is not None and alternate is not None:
            target = debug / ".build-id" / alternate[:2] / f"{alternate[2:]}.debug"
            _place(file.alternate_fd, target, reader)
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
            # relative, because the debugger reaches the directory by another path
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
            os.fchmod(fd, 0o644)  # whatever the umask is: the debugger may run as another user
            os.close(fd)


def _make_room(target: Path) -> bool:
    """Create the directories above `target`; return whether `target` can be created there.

    The core chose the names: one may need a directory where another is a file, or be too long.
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
    """Make `target` a link to an open file, or a copy of it.

    Return `target` in a list; nothing if it exists already or the file is too large.
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
        # sparse, and only while there is room: the crashed user chose the file
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
    """Print a warning for each missing file: first the executable, then libraries."""
    missing = [
        file for file in found.files if file.fd is None and file.module.name.startswith(b"/")
    ]
    missing.sort(key=lambda file: file.module.name != found.exe)
    for file in missing[:_WARNED_MAX]:
        wanted = f"build-id {file.module.build_id}" if file.module.build_id else "no build-id"
        context.warn(
            f"no symbols for {printable(file.module.name)} ({wanted}): "
            f"{printable(file.problem or 'it is too large')}"
        )
    if len(missing) > _WARNED_MAX:
        context.warn(f"and for {len(missing) - _WARNED_MAX} more libraries")
