"""Reads facts about the host for `crashctl doctor`: services, kernel, files of other packages.

Never changes anything. Size, number and time are bounded. domain/host/doctorhost.py judges the
facts.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from crashd.base.files import NotRegularError, open_regular, read_file
from crashd.domain.crash.cgroup import parse_cgroup
from crashd.domain.crash.procfs import parse_core_limit
from crashd.domain.host.denials import Denials, find_denials
from crashd.domain.host.doctorhost import Cleaner, Features, Journal, RunningUnit
from crashd.domain.host.sysctld import FILE_MAX, BootSetting, find_setting, order_files
from crashd.domain.host.unittimes import (
    UnitTimes,
    drop_in_directories,
    fragment_names,
    parse_defaults,
    parse_times,
)
from crashd.edge.capture.memory import PAGEMAP_SCAN
from crashd.edge.capture.process import pidfd_info
from crashd.edge.host.kmsg import Kmsg
from crashd.errors import UnavailableError

PROC = Path("/proc")
PROCESSES_MAX: Final = 20_000
SERVICES_MAX: Final = 2000
SECONDS_MAX: Final = 5.0
"""Time limit for reading processes."""
DROP_INS_MAX: Final = 100
AUDIT_MAX: Final = 1 << 20
KMSG_RECORDS_MAX: Final = 20_000
"""Drop-in files read per directory for a unit."""

SYSCTL_DIRECTORIES: Final = (
    "etc/sysctl.d",
    "run/sysctl.d",
    "usr/local/lib/sysctl.d",
    "usr/lib/sysctl.d",
    "lib/sysctl.d",
)
"""sysctl.d(5), highest precedence first; the last should be a link to the one before it."""
_TMPFILES = tuple(name.replace("sysctl", "tmpfiles") for name in SYSCTL_DIRECTORIES)
_UNITS = (
    "etc/systemd/system.control",
    "run/systemd/system.control",
    "run/systemd/transient",
    "run/systemd/generator.early",
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/generator.late",
)
"""systemd.unit(5), highest precedence first."""
_MANAGERS = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")


def read_features(proc: Path = PROC) -> Features:
    """Try this kernel's features on our own process."""
    modes = read_small(proc / "sys/kernel/core_modes").decode("ascii", "replace").split()
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (OSError, AttributeError):
        return Features(tuple(modes), pidfd=False, pidfd_info=False, pagemap_scan=_scans())
    try:
        info = pidfd_info(pidfd) is not None
    finally:
        os.close(pidfd)
    return Features(tuple(modes), pidfd_info=info, pagemap_scan=_scans())


def _scans() -> bool | None:
    """Return whether PAGEMAP_SCAN works, by an empty scan of our memory; None without pagemap."""
    # struct pm_scan_arg, linux/fs.h: size, flags, start, end, walk_end, vec, vec_len, max_pages, …
    argument = bytearray(struct.pack("=12Q", 96, *([0] * 11)))
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            fcntl.ioctl(file, PAGEMAP_SCAN, argument)
    except OSError as e:
        return False if e.errno in (errno.ENOTTY, errno.EINVAL) else None
    return True


def read_journal(root: Path) -> Journal:
    """Look for systemd, journald's socket, and its directory on disk."""
    return Journal(
        systemd=(root / "run/systemd/system").is_dir(),
        socket=(root / "run/systemd/journal/socket").exists(),
        persistent=(root / "var/log/journal").is_dir(),
    )


# -- files of other packages -----------------------------------------------------------------------


def read_boot_settings(root: Path, names: Iterable[str]) -> dict[str, BootSetting]:
    """Return what sysctl.d sets these sysctls to at boot."""
    files = [(str(path), text) for path, text in _read_all(root, SYSCTL_DIRECTORIES)]
    found = {name: find_setting(files, name) for name in names}
    return {name: _with_target(setting) for name, setting in found.items() if setting is not None}


def _with_target(setting: BootSetting) -> BootSetting:
    if not os.path.islink(setting.file):
        return setting
    return replace(setting, target=os.path.realpath(setting.file))


def read_collectors(root: Path) -> tuple[str, ...]:
    """Return the names of other collectors that set core_pattern when they start."""
    found = []
    if (root / "usr/share/apport/apport").exists():
        lines = _text(root / "etc/default/apport").splitlines()
        if not any(line.strip() == "enabled=0" for line in lines):
            found.append("apport")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    if os.path.lexists(wants / "abrt-ccpp.service"):
        found.append("abrt")
    return tuple(found)


def read_cleaners(root: Path, watched: Iterable[Path]) -> tuple[Cleaner, ...]:
    """Find what deletes files in these directories by age: tmpfiles.d, Apport's daily job."""
    paths = [str(path) for path in watched]
    found = [
        Cleaner(str(file), fields[1], fields[5])
        for file, text in _read_all(root, _TMPFILES)
        for fields in map(str.split, text.splitlines())
        if len(fields) > 5 and fields[5] != "-" and not fields[0].startswith("#")
        if any(_covers(str(root / fields[1].lstrip("/")), path) for path in paths)
    ]
    job = root / "etc/cron.daily/apport"
    if os.access(job, os.X_OK):
        found.append(Cleaner(str(job), "/var/crash/*", "7d"))
    return tuple(found)


def _covers(cleaned: str, path: str) -> bool:
    """Return whether cleaning a directory or pattern affects `path`."""
    directory = cleaned.partition("*")[0].rstrip("/") or "/"
    return Path(path).is_relative_to(directory) or Path(directory).is_relative_to(path)


def _read_all(root: Path, directories: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield the `*.conf` files that apply, in reading order, with their texts."""
    places = [root / directory for directory in directories]
    for index, name in order_files([_names(place) for place in places]):
        yield places[index] / name, _text(places[index] / name)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))[:SERVICES_MAX]
    except OSError:
        return []


def read_unit_times(root: Path, unit: str, defaults: UnitTimes) -> UnitTimes:
    """Read the timeouts of a service from its unit files.

    Reading files, unlike `systemctl show`, needs neither a bus nor another program.
    """
    directories = [root / name for name in _UNITS]
    texts = []
    for name in fragment_names(unit):
        fragment = next((d / name for d in directories if os.path.lexists(d / name)), None)
        if fragment is not None:
            texts.append(_text(fragment))
            break
    drop_ins: dict[str, Path] = {}
    for parent in drop_in_directories(unit):
        for directory in reversed(directories):
            for name in _names(directory / parent)[:DROP_INS_MAX]:
                if name.endswith(".conf"):
                    drop_ins[name] = directory / parent / name
    texts += [_text(path) for _, path in sorted(drop_ins.items())]
    return parse_times(texts, defaults)


def read_manager_defaults(root: Path) -> UnitTimes:
    """Read the service manager's own defaults."""
    directories = [root / name for name in _MANAGERS]
    main = next((d / "system.conf" for d in directories if (d / "system.conf").exists()), None)
    texts = [] if main is None else [_text(main)]
    places = [f"{name}/system.conf.d" for name in _MANAGERS]
    texts += [text for _, text in _read_all(root, places)]
    return parse_defaults(texts)


# -- services that run -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    in_container: bool
    pid: int
    count: int = 0
    core_limit: int | None = None
    core_filter: int | None = None
    size_bytes: int = -1


def read_services(root: Path, proc: Path = PROC) -> tuple[tuple[RunningUnit, ...], int]:
    """Group the running processes by unit or container; also return how many were left out."""
    groups: dict[str, _Group] = {}
    pids = [name for name in _names_of_processes(proc) if name != str(os.getpid())]
    end = time.monotonic() + SECONDS_MAX
    seen = 0
    for name in pids[:PROCESSES_MAX]:
        if time.monotonic() > end:
            break
        seen += 1
        _add(groups, proc / name, int(name))
    read_times = partial(read_unit_times, root, defaults=read_manager_defaults(root))
    services = tuple(_service(unit, group, read_times) for unit, group in sorted(groups.items()))
    return services, len(pids) - seen


def _names_of_processes(proc: Path) -> list[str]:
    try:
        return sorted((name for name in os.listdir(proc) if name.isdigit()), key=int)
    except OSError:
        return []


def _add(groups: dict[str, _Group], process: Path, pid: int) -> None:
    placement = parse_cgroup(read_small(process / "cgroup"))
    container = placement.container_id
    unit = placement.unit
    if container is not None:
        unit = f"{placement.container_runtime} {container[:12]}"
    sizes = read_small(process / "statm").split()
    resident = int(sizes[1]) * os.sysconf("SC_PAGE_SIZE") if len(sizes) > 1 else 0
    if unit is None or not resident:  # without memory: a kernel thread, or gone
        return
    if unit not in groups and len(groups) >= SERVICES_MAX:
        return
    group = groups.setdefault(unit, _Group(container is not None, pid))
    group.count += 1
    limit = parse_core_limit(read_small(process / "limits"))
    if limit is not None:
        group.core_limit = max(limit, group.core_limit or 0)
    bits = read_small(process / "coredump_filter").strip()
    if bits and len(bits) < 17 and all(byte in b"0123456789abcdef" for byte in bits):
        group.core_filter = int(bits, 16) | (group.core_filter or 0)
    if resident > group.size_bytes:
        group.size_bytes, group.pid = resident, pid


def _service(unit: str, group: _Group, read_times: Callable[[str], UnitTimes]) -> RunningUnit:
    timed = unit.endswith(".service") and not group.in_container
    return RunningUnit(
        unit=unit,
        in_container=group.in_container,
        pid=group.pid,
        count=group.count,
        core_limit=group.core_limit,
        core_filter=group.core_filter,
        size_bytes=group.size_bytes,
        times=read_times(unit) if timed else None,
    )


# -- what SELinux and AppArmor forbid --------------------------------------------------------------


def read_denials(root: Path, now_ns: int) -> Denials:
    """Read the denials of the last day from auditd's log and the kernel's, a megabyte of each."""
    active = []
    if (root / "sys/fs/selinux/enforce").exists():
        active.append("SELinux")
    if _text(root / "sys/module/apparmor/parameters/enabled").startswith("Y"):
        active.append("AppArmor")
    found = [_read_audit_log(root), _read_kernel_log(root)] if active else []
    read = [lines for lines in found if lines is not None]
    lines = [line for lines in read for line in lines]
    return find_denials(tuple(active), lines if read else None, now_ns)


def _read_audit_log(root: Path) -> list[bytes] | None:
    try:
        fd = open_regular(root / "var/log/audit/audit.log")
    except (OSError, NotRegularError):
        return None
    with open(fd, "rb") as file:
        file.seek(max(0, os.fstat(fd).st_size - AUDIT_MAX))
        return file.read(AUDIT_MAX).splitlines()


def _read_kernel_log(root: Path) -> list[bytes] | None:
    if root != Path("/"):
        return None
    try:
        log = Kmsg()
    except UnavailableError:
        return None
    try:
        return [record.text for record in log.read(KMSG_RECORDS_MAX)]
    except OSError:
        return None
    finally:
        log.close()


# -- files -----------------------------------------------------------------------------------------


def read_small(path: Path) -> bytes:
    """Read a file up to a limit; empty if it cannot be read. Never blocks on a FIFO."""
    try:
        return read_file(path, FILE_MAX, follow=True)
    except OSError:
        return b""  # the process has ended


def _text(path: Path) -> str:
    return read_small(path).decode("utf-8", "surrogateescape")
