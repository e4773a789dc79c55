"""Files of kernel modules with debug information, found by the modules' names below the directories
of their kernel's release.

A dump's contents only choose among files that root alone may write to: its release and the names of
its modules are compared, and never become a path.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from crashd.domain.elf.vmlinux import module_name, module_places
from crashd.store.trusted import find_untrusted

FILES_MAX: Final = 50_000
"""Files of a release that are looked at; Debian's largest kernel has 4000 modules."""
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW


def find_modules(
    root: Path, release: str | None, names: Iterable[str], directories: Iterable[str] = ()
) -> dict[str, Path]:
    """Find the file of each named module of a release, in the first directory that has it; as root,
    only one that nobody else can change. Raises nothing.
    """
    wanted, found = set(names), dict[str, Path]()
    left = FILES_MAX
    for place in module_places(release, directories):
        for directory, _, files in os.walk(root / place):
            for file in files:
                name = module_name(file)
                if name in wanted and name not in found:
                    found[name] = Path(directory, file)
            left -= len(files)
            if left < 0 or len(found) == len(wanted):
                return found
    return found


def open_modules(files: Mapping[str, Path]) -> dict[str, int]:
    """Open what was found; the caller owns the descriptors. A file that cannot be opened, or that
    others could change, is left out.
    """
    opened: dict[str, int] = {}
    for name, path in files.items():
        try:
            if find_untrusted(path) is not None:
                continue
            fd = os.open(path, _OPEN)
        except OSError:
            continue
        if stat.S_ISREG(os.fstat(fd).st_mode):
            opened[name] = fd
        else:
            os.close(fd)
    return opened
