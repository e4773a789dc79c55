"""Put the crash-time handler where kernel.core_pattern names it.

    /usr/libexec/crashd-core       what the kernel starts: the native program if one was built
    /usr/libexec/crashd-core.py    the Python handler, which the native program execs on any trouble

Without a native program (a wheel, a machine without a compiler) the first is the Python handler.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from crashd import corehandler
from crashd.base.files import replace_file
from crashd.domain.text import printable
from crashd.errors import UnavailableError, UnsupportedError, reason_of
from crashd.store.paths import Paths
from crashd.store.trusted import find_untrusted, untrusted

NATIVE = Path(corehandler.__file__).parent / "native/crashd-core"
"""Built by packaging/lib.sh from the C file beside it."""
_EXECUTABLE = Path("/proc/self/exe")
_INTERPRETER = Path("/usr/bin/python3")
"""The Python handler's first line names it."""
_SAME_MACHINE_BYTES = 20
"""Bytes of the ELF header up to class, byte order, ABI, type and machine (elf(5))."""


def python_program() -> bytes:
    """Build the Python handler as it is installed: its own source, the lower part commented out.

    corehandler.py explains why. A comment costs the compiler next to nothing, and the file stays
    one readable program that needs nothing beside it.
    """
    top, _, rest = Path(corehandler.__file__).read_text(encoding="utf-8").partition("# LOWER PART")
    lower, end, guard = rest.partition("# END OF LOWER PART")
    commented = "\n".join(
        ["# LOWER PART" + lower.split("\n")[0]] + ["#|" + line for line in lower.split("\n")[1:-1]]
    )
    return f"{top}{commented}\n{end}{guard}".encode()


def native_program(built: Path = NATIVE, running: Path = _EXECUTABLE) -> bytes | None:
    """Read the native handler; None if it was not built, or is for another machine."""
    try:
        program = built.read_bytes()
        with running.open("rb") as file:
            own = file.read(_SAME_MACHINE_BYTES)
    except OSError:
        return None
    # e_type may differ: an interpreter need not be position-independent
    same = (program[:16], program[18:20]) == (own[:16], own[18:_SAME_MACHINE_BYTES])
    return program if same else None


def memory_program() -> Path | None:
    """Return the interpreter that may read a process's memory for the handler: ours; None if users
    other than root can change it, or what it would run.

    The handler runs it as root, for any crash, long after this daemon started.
    """
    interpreter = Path(sys.executable) if sys.executable else None
    if interpreter is None or not interpreter.is_absolute():
        return None
    ours = (interpreter, Path(corehandler.__file__).parent)
    return None if any(find_untrusted(path) for path in ours) else interpreter


def list_programs(paths: Paths, native: bytes | None) -> Iterator[tuple[Path, bytes]]:
    """Yield what to install, the Python handler first, because the native one needs it."""
    if native is not None:
        yield paths.handler_fallback, python_program()
    yield paths.handler, python_program() if native is None else native


def install_handler(paths: Paths, built: Path = NATIVE) -> bool:
    """Write the handler, root-owned and 0755, by rename; return False when nothing had to change.

    A kernel that is starting the old one keeps its inode (FAULTS 30). Without a native program at
    `built`, only the Python handler is installed.

    Raises:
        ConfigError: users other than root can replace it.
        UnsupportedError: the kernel cannot start it there.
        UnavailableError: it cannot be written.

    """
    _prepare(paths.handler.parent)
    if why := find_untrusted(_INTERPRETER):
        raise untrusted(why)
    programs = list_programs(paths, native_program(built))
    return any([_install(*wanted) for wanted in programs])


def is_current(paths: Paths) -> bool:
    """Return whether the installed programs are those that this version would install.

    Raises:
        OSError: it cannot be read.

    """
    return all(_holds(*wanted) for wanted in list_programs(paths, native_program()))


def _holds(target: Path, program: bytes) -> bool:
    return target.is_file() and not target.is_symlink() and target.read_bytes() == program


def _install(target: Path, program: bytes) -> bool:
    try:
        if _holds(target, program):
            status = target.stat()
            if status.st_mode & 0o777 == 0o755 and status.st_uid == os.geteuid():
                return False
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        replace_file(target, program, staged=staged, mode=0o755, exclusive=True, sync=True)
    except OSError as e:
        raise UnavailableError(f"cannot install the handler {target}: {reason_of(e)}") from e
    return True


def _prepare(directory: Path) -> None:
    """Make the handler's directory, if it is safe and programs can be started from it."""
    if why := find_untrusted(directory):
        raise untrusted(why)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        mount = find_noexec(directory)
    except OSError as e:
        raise UnavailableError(f"cannot install the handler in {directory}: {reason_of(e)}") from e
    if mount:
        raise UnsupportedError(
            f"{directory} is on a file system mounted noexec, {mount}: "
            "the kernel cannot start the handler",
            hint=f"mount -o remount,exec {mount}",
        )


def find_noexec(directory: Path) -> str | None:
    """Return the mount point of a directory's file system if it is mounted noexec; None if it is
    not.

    Raises:
        OSError: the directory cannot be examined.

    """
    if not os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return None
    path = os.path.realpath(directory)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return printable(os.fsencode(path))
