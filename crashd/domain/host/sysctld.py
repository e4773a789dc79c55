"""Finds what systemd-sysctl sets at boot, in the texts of sysctl.d(5) files in reading order.

Source: src/sysctl/sysctl.c (parse_file, apply_all): a later assignment replaces an earlier one of
the same key, a named key wins over a glob that matches it, and a key alone after a dash is excluded
from the globs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

FILE_MAX: Final = 1 << 20
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class BootSetting:
    """The assignment that wins."""

    file: str
    value: str
    line: int = field(default=0, compare=False)
    """Number of its line, from 1; 0: not known."""
    target: str = field(default="", compare=False)
    """What the file is a link to: Debian reads /etc/sysctl.conf by 99-sysctl.conf."""


def find_setting(files: Iterable[tuple[str, str]], key: str) -> BootSetting | None:
    """Return the assignment of `key` (with dots) in files of (path, text), or None."""
    named: BootSetting | None = None
    globbed: BootSetting | None = None
    is_named = False
    for path, text in files:
        for number, line in enumerate(text.splitlines(), 1):
            name, equals, value = line.strip().partition("=")
            if name.startswith(("#", ";")):
                continue
            found = _normal(name.strip().removeprefix("-"))
            if not equals:
                if name.startswith("-") and found == key:
                    named, is_named = None, True
            elif found == key:
                named, is_named = BootSetting(path, value.strip(), number), True
            elif _GLOB & set(found) and fnmatchcase(key, found):
                globbed = BootSetting(path, value.strip(), number)
    return named if is_named else globbed


def order_files(directories: Iterable[Iterable[str]]) -> list[tuple[int, str]]:
    """Return the files of sysctl.d directories in reading order; directories come by precedence.

    Each file is (index of the directory, name). A name counts only in the first directory that
    has it, and files are read in the order of their names.
    """
    chosen: dict[str, int] = {}
    for index, names in enumerate(directories):
        for name in names:
            if name.endswith(".conf"):
                chosen.setdefault(name, index)
    return [(chosen[name], name) for name in sorted(chosen)]


def _normal(name: str) -> str:
    """Convert a key to dots if its first separator is a slash (sysctl_normalize)."""
    slash, dot = name.find("/"), name.find(".")
    if slash < 0 or 0 <= dot < slash:
        return name
    return name.translate(str.maketrans("/.", "./"))
