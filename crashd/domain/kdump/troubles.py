"""What the capture kernel's own log says about a dump that it could not save."""

import re
from typing import Final

from crashd.domain.text import printable

TROUBLES_MAX: Final = 6
LINE_MAX: Final = 300

_MAKER = re.compile(r"makedumpfile|kdump(?:\.sh)?\[|kdump:|dracut", re.IGNORECASE)
_TROUBLE = re.compile(
    r"fail|error|no space|cannot|can't|could not|unable|refus|invalid|not enough|denied"
    r"|timed? ?out",
    re.IGNORECASE,
)
_KERNEL = re.compile(
    r"out of memory|oom-kill|killed process|no space left|i/o error|read-only file system"
    r"|kernel panic|blocked for more than|link is down|nfs: server",
    re.IGNORECASE,
)


def find_troubles(log: bytes) -> tuple[str, ...]:
    """Return the last lines that say why saving a dump failed: those of makedumpfile, of the script
    around it, and of the kernel about memory, disks and networks.
    """
    found: list[str] = []
    for line in log.decode("utf-8", "backslashreplace").splitlines():
        says = _MAKER.search(line) is not None and _TROUBLE.search(line) is not None
        if says or _KERNEL.search(line):
            found.append(printable(line.strip()[:LINE_MAX]))
    return tuple(dict.fromkeys(found[-TROUBLES_MAX:]))
