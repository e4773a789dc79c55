"""Reads how kernel dumps are set up on this host: /sys, /proc and the files of the dump tools."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from crashd.base.files import NotRegularError, read_file, read_space
from crashd.domain.kdump.conf import (
    CONF_MAX,
    parse_kdump_conf,
    parse_kdump_tools,
    parse_sysconfig,
)
from crashd.domain.kdump.ready import SYSCTLS, Facts, Target, dump_paths
from crashd.errors import CrashdError

SYS = Path("/sys")
PROC = Path("/proc")
_SMALL = 64 * 1024
_PROGRAMS = (
    ("kdump-tools", ("usr/sbin/kdump-config",)),
    ("kdump-utils", ("usr/bin/kdumpctl", "usr/sbin/kdumpctl")),
    ("suse-kdump", ("usr/sbin/kdumptool", "usr/lib/kdump/kdump-save", "usr/sbin/mkdumprd")),
)
_T = TypeVar("_T")


def read_facts(root: Path = Path("/")) -> Facts:
    """Read everything that decides whether a panic leaves a dump; `root` holds the tools' files."""
    problems: list[str] = []
    facts = Facts(
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
    )
    targets = tuple(_target(root, path) for path in dump_paths(facts))
    return replace(facts, targets=targets, problems=tuple(problems))


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
