"""Put the crash-time handler where kernel.core_pattern names it."""

import os
from pathlib import Path

from crashd import corehandler
from crashd.domain.text import printable
from crashd.errors import UnavailableError, UnsupportedError
from crashd.store.entry import write_all
from crashd.store.paths import Paths
from crashd.store.trusted import find_untrusted, untrusted


def handler_program() -> bytes:
    """Build the handler as it is installed: its own source, the lower part commented out.

    corehandler.py says why; a comment costs the compiler next to nothing, and the file stays one
    readable program that needs nothing beside it.
    """
    top, _, rest = Path(corehandler.__file__).read_text(encoding="utf-8").partition("# LOWER PART")
    lower, end, guard = rest.partition("# END OF LOWER PART")
    commented = "\n".join(
        ["# LOWER PART" + lower.split("\n")[0]] + ["#|" + line for line in lower.split("\n")[1:-1]]
    )
    return f"{top}{commented}\n{end}{guard}".encode()


def install_handler(paths: Paths) -> bool:
    """Write the handler, root-owned and 0755, by rename; False when it is already there as it
    should be.

    A kernel that is starting the old one keeps its inode (FAULTS 30).

    Raises:
        ConfigError: others than root can replace it.
        UnsupportedError: the kernel cannot start it there.
        UnavailableError: it cannot be written.

    """
    program = handler_program()
    target = paths.handler
    _prepare(target.parent)
    try:
        if target.is_file() and not target.is_symlink() and target.read_bytes() == program:
            status = target.stat()
            if status.st_mode & 0o777 == 0o755 and status.st_uid == os.geteuid():
                return False
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(staged, flags, 0o700)
        try:
            write_all(fd, program)
            os.fchmod(fd, 0o755)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(staged, target)
    except OSError as e:
        raise UnavailableError(f"cannot install the handler {target}: {e.strerror}") from e
    return True


def _prepare(directory: Path) -> None:
    """Make the handler's directory, where it is safe and a program can be started from it."""
    if why := find_untrusted(directory):
        raise untrusted(why)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        mount = find_noexec(directory)
    except OSError as e:
        raise UnavailableError(f"cannot install the handler in {directory}: {e.strerror}") from e
    if mount:
        raise UnsupportedError(
            f"{directory} is on a file system mounted noexec, {mount}: "
            "the kernel cannot start the handler",
            hint=f"mount -o remount,exec {mount}",
        )


def find_noexec(directory: Path) -> str | None:
    """Return the mount point of the file system that a directory is on, where nothing of it can be
    executed; None where it can.

    Raises:
        OSError: it cannot be looked at.

    """
    if not os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return None
    path = os.path.realpath(directory)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return printable(os.fsencode(path))
