"""Reads what dpkg-query and rpm print about the owner of a file. Pure."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from crashd.domain.crash.model import Crash
from crashd.domain.elf.packagenote import is_package

_PATH = re.compile(rb"/[!-$&-~ ]{1,1023}")
_DIVERSION = re.compile(r"diversion by (\S+) (from|to): (.+)")
_LOCAL = re.compile(r"local diversion (from|to): (.+)")
_DPKG_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}(?::[a-z0-9-]{1,32})?", re.ASCII)
_MERGED: Final = re.compile(r"/usr(/(?:bin|sbin|lib|lib32|lib64|libx32|libo32)/.+)")


class Package(NamedTuple):
    """A package of the host, or the one that an executable claims."""

    name: str
    version: str
    source: str
    """`dpkg`, `rpm` or `note`."""


class Owners(NamedTuple):
    """What `dpkg-query --search` says about a path."""

    names: tuple[str, ...] = ()
    """With their architecture, where dpkg needs it."""
    diverted_to: str | None = None
    """The package, empty for the administrator, that has this path since the owner's file was moved
    elsewhere."""
    moved_from: str | None = None
    """The path under which the owner's list has this file."""


def path_text(exe: bytes) -> str | None:
    """Return a path as text if the path may be passed to a package manager: plain ASCII, and no
    `%`, which rpm expands in some arguments.
    """
    return exe.decode("ascii") if _PATH.fullmatch(exe) else None


def names_in_dpkg(path: str) -> list[str]:
    """Return under which names dpkg may have a file: packages from before /usr was merged have
    /bin/sh for /usr/bin/sh.
    """
    merged = _MERGED.fullmatch(path)
    return [path, merged[1]] if merged else [path]


def escape_pattern(path: str) -> str:
    """Escape what `dpkg-query --search` takes for a pattern, as in /usr/bin/[."""
    return re.sub(r"([\\*?\[])", r"\\\1", path)


def parse_dpkg_search(output: str, paths: Iterable[str]) -> Owners:
    """Parse what `dpkg-query --search` prints about the names of one file.

    Source: searchoutput() in dpkg's src/query/main.c.
    """
    wanted, found, by, moved = set(paths), Owners(), None, ""
    for line in output.splitlines():
        if diversion := (_DIVERSION.fullmatch(line) or _LOCAL.fullmatch(line)):
            *who, direction, path = diversion.groups()
            if direction == "from":
                by, moved = (who[0] if who else ""), path
                if path in wanted:
                    found = found._replace(diverted_to=by)
            elif path in wanted:
                found = found._replace(moved_from=moved)
            continue
        names, _, path = line.partition(": ")
        if path in wanted and all(_DPKG_NAME.fullmatch(name) for name in names.split(", ")):
            found = found._replace(names=(*found.names, *names.split(", ")))
    return found


def dpkg_owner(owners: Owners, diverter: str | None = None) -> str | None:
    """Return the package whose file is at a path; `diverter` is the one that moved it there."""
    names = [name for name in owners.names if name.partition(":")[0] != diverter]
    if owners.diverted_to is not None:
        names = [name for name in names if name.partition(":")[0] == owners.diverted_to]
    return names[0] if len({name.partition(":")[0] for name in names}) == 1 else None


def parse_package(line: str, source: str) -> Package | None:
    """Parse a line of name, tabulator and version."""
    name, _, version = line.removesuffix("\n").partition("\t")
    name = name.partition(":")[0]
    return Package(name, version, source) if is_package(name, version) else None


def mapped_inodes(maps: bytes, exe: bytes) -> set[tuple[int, int, int]]:
    """Return major, minor and inode of each file that /proc/PID/maps has under a name."""
    found = set()
    for line in maps.split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5] == exe:
            major, _, minor = fields[3].partition(b":")
            try:
                found.add((int(major, 16), int(minor, 16), int(fields[4])))
            except ValueError:
                continue
    return found


def with_package(crash: Crash, found: Package | None) -> Crash:
    """Return a crash's record with its package; what is known stays if nothing was found, and what
    a package manager said also if the executable claims something.
    """
    if found is None or (found.source == "note" and crash.package_source not in (None, "note")):
        return crash
    return replace(
        crash,
        package_name=found.name,
        package_version=found.version,
        package_source=found.source,
    )
