"""Put the crash-time handler where kernel.core_pattern names it."""

import os
from pathlib import Path

from crashd import corehandler
from crashd.errors import UnavailableError, reason_of
from crashd.store.entry import write_all
from crashd.store.paths import Paths


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
        UnavailableError: it cannot be written.

    """
    program = handler_program()
    target = paths.handler
    try:
        if target.is_file() and not target.is_symlink() and target.read_bytes() == program:
            status = target.stat()
            if status.st_mode & 0o777 == 0o755 and status.st_uid == os.geteuid():
                return False
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
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
        raise UnavailableError(f"cannot install the handler {target}: {reason_of(e)}") from e
    return True
