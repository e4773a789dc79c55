"""Reads how kernel dumps are set up on this host: /sys, /proc and the files of the dump tools."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from crashd.base.files import NotRegularError, read_file, read_space
from crashd.domain.kdump.compressed import find_wrapper
from crashd.domain.kdump.conf import (
    CONF_MAX,
    parse_kdump_conf,
    parse_kdump_tools,
    parse_sysconfig,
)
from crashd.domain.kdump.directory import FILES_MAX, is_never_touched, parse_directory_name
from crashd.domain.kdump.diskdump import SIGNATURE
from crashd.domain.kdump.flattened import FLAT_MAGIC
from crashd.domain.kdump.permit import UNIT, UNIT_PLACES, is_writable
from crashd.domain.kdump.ready import SYSCTLS, KdumpFacts, Target, dump_paths
from crashd.errors import CrashdError

SYS = Path("/sys")
PROC = Path("/proc")
_SMALL = 64 * 1024
_HEAD = 64
_NAMES_MAX = 10_000
_NEWEST = 3
_DROP_INS_MAX = 64
_PROGRAM_MAX = 16 << 20
_DUMP_NAME = re.compile(rb"(?:k?dump|vmcore|kdump\.(?:dump|vmcore))(?!-dmesg)")
_INITRDS = (
    "var/lib/kdump/initrd.img-{}",
    "boot/initramfs-{}kdump.img",
    "boot/initrd-{}-kdump",
    "var/lib/kdump/initrd",
)
"""Of the capture kernel: Debian, Fedora and RHEL, SUSE up to 15 and from 16 on."""
_PROGRAMS = (
    ("kdump-tools", ("usr/sbin/kdump-config",)),
    ("kdump-utils", ("usr/bin/kdumpctl", "usr/sbin/kdumpctl")),
    ("suse-kdump", ("usr/sbin/kdumptool", "usr/lib/kdump/kdump-save", "usr/sbin/mkdumprd")),
)
_T = TypeVar("_T")


def read_facts(root: Path = Path("/")) -> KdumpFacts:
    """Read everything that decides whether a panic leaves a dump; `root` holds the tools' files."""
    problems: list[str] = []
    facts = KdumpFacts(
        loaded=_flag(SYS / "kernel/kexec_crash_loaded"),
        reserved_bytes=_number(SYS / "kernel/kexec_crash_size"),
        cmdline=_read(PROC / "cmdline", _SMALL) or b"",
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        sysctls=_sysctls(),
        tools=_parsed(root / "etc/default/kdump-tools", parse_kdump_tools, problems),
        conf=_parsed(root / "etc/kdump.conf", parse_kdump_conf, problems),
        sysconfig=_parsed(root / "etc/sysconfig/kdump", parse_sysconfig, problems),
        installed=tuple(
            name for name, files in _PROGRAMS if any((root / file).exists() for file in files)
        ),
        apport_cleans=(root / "etc/cron.daily/apport").exists(),
        pstore=_backend(),
        fadump=_fadump(),
    )
    targets = tuple(_target(root, path) for path in dump_paths(facts))
    return replace(facts, targets=targets, problems=tuple(problems))


def read_details(root: Path, facts: KdumpFacts, more_paths: Iterable[str] = ()) -> KdumpFacts:
    """Add what takes longer to read, and what decides how large a dump may be: for a person who
    asks. `more_paths` are directories that crashd is told to watch.
    """
    release = os.uname().release
    known = {target.path for target in facts.targets}
    more = tuple(_target(root, path) for path in more_paths if path not in known)
    targets = (*facts.targets, *more)
    here = [target.path for target in targets if target.exists]
    sizes: list[int] = []
    plain: list[str] = []
    for path in here:
        _look_at_dumps(root / path.lstrip("/"), path, sizes, plain)
    return replace(
        facts,
        targets=targets,
        initrd_bytes=next(
            (size for name in _INITRDS if (size := _size(root / name.format(release))) is not None),
            None,
        ),
        dump_bytes=max(sizes, default=None),
        compressions=_compressions(root),
        plain_dumps=tuple(plain),
        denied=tuple(path for path in here if not is_writable(path, _read_unit(root))),
    )


def _look_at_dumps(path: Path, name: str, sizes: list[int], plain: list[str]) -> None:
    """Find the sizes of this host's newest dumps, and dumps in no directory of their own."""
    found: list[tuple[int, Path]] = []
    try:
        with os.scandir(path) as entries:
            for entry, _ in zip(entries, range(_NAMES_MAX), strict=False):
                raw = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    named = parse_directory_name(raw)
                    if named is not None and named[1] is None:  # of no other host
                        found.append((named[3], Path(entry.path)))
                elif _is_plain_dump(Path(entry.path), raw):
                    plain.append(f"{name}/{entry.name}")
    except OSError:
        return
    for _, directory in sorted(found, reverse=True)[:_NEWEST]:
        size = _largest_dump(directory)
        if size is not None:
            sizes.append(size)


def _largest_dump(directory: Path) -> int | None:
    try:
        with os.scandir(directory) as entries:
            known = zip(entries, range(FILES_MAX), strict=False)
            sizes = [
                entry.stat(follow_symlinks=False)
                for entry, _ in known
                if _DUMP_NAME.match(os.fsencode(entry.name))
            ]
    except OSError:
        return None
    trusted = (0, os.geteuid())
    return sum(s.st_size for s in sizes if S_ISREG(s.st_mode) and s.st_uid in trusted) or None


def _is_plain_dump(path: Path, name: bytes) -> bool:
    """Return whether a file is a dump by its first bytes, and by its name where those are not sure:
    an ELF core may be a process's.
    """
    if is_never_touched(name):
        return False
    try:
        head = read_file(path, _HEAD)
    except (OSError, NotRegularError):
        return False
    if head.startswith((SIGNATURE, FLAT_MAGIC)):
        return True
    named = _DUMP_NAME.match(name) is not None or parse_directory_name(name) is not None
    return named and (head.startswith(b"\x7fELF") or find_wrapper(head) is not None)


def _compressions(root: Path) -> frozenset[str] | None:
    """Find how makedumpfile was built: its own words on it are in the program."""
    for name in ("usr/bin/makedumpfile", "usr/sbin/makedumpfile"):
        raw = _read(root / name, _PROGRAM_MAX)
        if raw:
            known = ("lzo", "snappy", "zstd")
            return frozenset(c for c in known if f"{c}\tenabled".encode() in raw)
    return None


def _read_unit(root: Path) -> str:
    """Read crashd.service with its drop-ins; "" where it is not installed."""
    texts = []
    for place in UNIT_PLACES:
        raw = _read(root / place / UNIT, _SMALL)
        if raw is not None:
            texts.append(raw)
            break
    for place in UNIT_PLACES:
        directory = root / place / f"{UNIT}.d"
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(directory))[:_DROP_INS_MAX]
            texts += [_read(directory / n, _SMALL) or b"" for n in names if n.endswith(".conf")]
    return b"\n".join(texts).decode("utf-8", "surrogateescape") if texts else ""


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _fadump() -> bool | None:
    for name in ("kernel/fadump/registered", "kernel/fadump_registered"):
        flag = _flag(SYS / name)
        if flag is not None:
            return flag
    return None


def _sysctls() -> dict[str, int]:
    values = {name: _number(PROC / "sys/kernel" / name) for name in SYSCTLS}
    return {name: value for name, value in values.items() if value is not None}


def _target(root: Path, name: str) -> Target:
    path = root / name.lstrip("/")
    try:
        status = os.stat(path)
        space = read_space(path)
    except OSError:
        return Target(name, exists=False)
    loose = status.st_mode & 0o022 and not status.st_mode & 0o1000
    distrust = "can be written by other users" if loose else None
    if status.st_uid not in (0, os.geteuid()):
        distrust = f"belongs to uid {status.st_uid}"
    return Target(name, True, space.root_free_bytes, space.total_bytes, distrust)


def _parsed(path: Path, parse: Callable[[bytes], _T], problems: list[str]) -> _T | None:
    if not path.exists():
        return None
    raw = _read(path, CONF_MAX + 1)
    if raw is None:
        problems.append(f"{path} cannot be read")
        return None
    try:
        return parse(raw)
    except CrashdError as e:
        problems.append(f"{path}: {e}")
        return None


def _read(path: Path, size: int) -> bytes | None:
    try:
        return read_file(path, size, follow=True)
    except NotRegularError as e:
        return None if e.errno == errno.EISDIR else b""  # a masked file is a link to /dev/null
    except OSError:
        return None


def _number(path: Path) -> int | None:
    raw = (_read(path, 64) or b"").split()
    text = raw[0] if raw else b""
    return int(text) if text.lstrip(b"-").isdigit() else None


def _flag(path: Path) -> bool | None:
    number = _number(path)
    return None if number is None else number != 0


def _backend() -> str | None:
    raw = _read(SYS / "module/pstore/parameters/backend", 64) or b""
    name = raw.strip().decode("ascii", "replace")
    return name if name and name != "(null)" else None
