"""What `doctor` looks at: one function a matter, each giving one Check with what to do about it.

Everything is below `paths` and `proc`, so that tests can give trees of their own.
"""

import os
import resource
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from crashd.domain.corepattern import handler_of, is_ours
from crashd.domain.units import format_size
from crashd.edge import sysctl
from crashd.errors import CrashdError, FormatError, IndexCorruptError, UnavailableError
from crashd.store.handlerfile import handler_program
from crashd.store.paths import Paths
from crashd.store.trusted import distrust

SYSCTL_DIRS = ("usr/lib/sysctl.d", "usr/local/lib/sysctl.d", "run/sysctl.d", "etc/sysctl.d")
"""Where systemd-sysctl(8) and sysctl(8) read from; a file in a later one hides its namesakes."""
FREE_MIN_BYTES = 64 << 20
FREE_LOW_BYTES = 1 << 30
FREE_LOW_SHARE = 0.05
_FILE_MAX = 1 << 20


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    text: str
    """What was found, in a line."""
    hint: str | None = None
    """What to do about it."""


def _ok(name: str, text: str) -> Check:
    return Check(name, Level.OK, text)


def run_checks(paths: Paths, proc: Path, ask: Callable[[], dict[str, Any]]) -> Iterator[Check]:
    """Look at everything; `ask` gives the daemon's status or raises UnavailableError."""
    yield check_core_pattern(paths, proc)
    yield check_handler(paths)
    yield check_interpreter(paths)
    yield check_pipe_limit(proc)
    yield check_suid_dumpable(proc)
    yield check_core_modes(proc)
    yield check_daemon(ask)
    yield check_configuration(paths)
    yield check_state_dir(paths)
    yield check_free_space(paths)
    yield check_spool(paths, time.time_ns())
    yield check_index(paths)
    yield check_boot_settings(paths)
    yield check_core_limit(resource.getrlimit(resource.RLIMIT_CORE))


def check_core_pattern(paths: Paths, proc: Path) -> Check:
    """Does the kernel give crashes to our handler?"""
    name = "core_pattern"
    try:
        pattern = sysctl.read(sysctl.PATTERN, proc)
    except CrashdError as e:
        return Check(name, Level.PROBLEM, str(e))
    if is_ours(pattern, str(paths.handler)):
        return _ok(name, pattern)
    other = handler_of(pattern)
    owner = f"crashes go to {other}" if other else f"{pattern!r} is not crashd's"
    return Check(name, Level.PROBLEM, owner, "crashctl install, or start crashd")


def check_handler(paths: Paths) -> Check:
    """Is the handler there, this version's, and safe from others?"""
    name = "handler"
    handler = paths.handler
    try:
        status = handler.lstat()
        parent = handler.parent.stat()
    except OSError as e:
        return Check(name, Level.PROBLEM, f"{handler}: {e.strerror}", "crashctl install")
    if not stat.S_ISREG(status.st_mode):
        return Check(name, Level.PROBLEM, f"{handler} is not a regular file", "crashctl install")
    euid = os.geteuid()
    for path, found in ((handler, status), (handler.parent, parent)):
        if why := distrust(found.st_uid, found.st_mode, euid):
            return Check(name, Level.PROBLEM, f"{path} {why}", "chown root, chmod go-w")
    if not status.st_mode & stat.S_IXUSR:
        return Check(name, Level.PROBLEM, f"{handler} is not executable", "crashctl install")
    if _read(handler) != handler_program():
        text = f"{handler} is of another version of crashd"
        return Check(name, Level.WARNING, text, "restart crashd, or crashctl install")
    return _ok(name, str(handler))


def check_interpreter(paths: Paths) -> Check:
    """Can the kernel run the handler's interpreter?"""
    name = "interpreter"
    first = _read(paths.handler).split(b"\n", 1)[0]
    words = first[2:].split() if first.startswith(b"#!") else []
    if not words:
        return Check(name, Level.PROBLEM, "the handler names none", "crashctl install")
    interpreter = os.fsdecode(words[0])
    if not os.path.isfile(interpreter) or not os.access(interpreter, os.X_OK):
        text = f"{interpreter} is not there or cannot be run"
        return Check(name, Level.PROBLEM, text, "apt-get install python3-minimal")
    return _ok(name, interpreter)


def _sysctl_number(name: str, proc: Path) -> int:
    text = sysctl.read(name, proc)
    if not (text.isascii() and text.isdigit()):
        raise UnavailableError(f"{name} is {text!r}")
    return int(text)


def check_pipe_limit(proc: Path) -> Check:
    """Does the kernel keep /proc/PID of a crashed process for us?"""
    name = "core_pipe_limit"
    try:
        limit = _sysctl_number(sysctl.PIPE_LIMIT, proc)
    except UnavailableError as e:
        return Check(name, Level.PROBLEM, str(e))
    if limit == 0:
        text = "0: a crashed process is gone before it could be looked at"
        return Check(name, Level.PROBLEM, text, "crashctl install, or restart crashd")
    return _ok(name, f"{limit} crashes at the same time")


def check_suid_dumpable(proc: Path) -> Check:
    """Do programs with privileges of their own leave a core, and a safe one?"""
    name = "suid_dumpable"
    try:
        value = _sysctl_number(sysctl.SUID_DUMPABLE, proc)
    except UnavailableError as e:
        return Check(name, Level.PROBLEM, str(e))
    if value == 2:
        return _ok(name, "2: set-user-ID programs dump, for root only")
    if value == 1:
        text = "1: users can read the memory of set-user-ID programs"
        return Check(name, Level.PROBLEM, text, "sysctl fs.suid_dumpable=2")
    text = f"{value}: crashes of set-user-ID programs leave no trace"
    return Check(name, Level.WARNING, text, "sysctl fs.suid_dumpable=2")


def check_core_modes(proc: Path) -> Check:
    """Can this kernel pipe cores to a program?"""
    name = "core_modes"
    modes = _read(proc / "sys/kernel/core_modes").decode("ascii", "replace").split()
    if not modes:
        return _ok(name, "not told by this kernel; pipe is there since 2.6")
    if "pipe" not in modes:
        return Check(name, Level.PROBLEM, f"no pipe among {' '.join(modes)}")
    return _ok(name, ", ".join(modes))


def check_daemon(ask: Callable[[], dict[str, Any]]) -> Check:
    """Does the daemon run, ready and registered?"""
    name = "daemon"
    try:
        status = ask()
    except (UnavailableError, FormatError) as e:
        hint = "systemctl start crashd; until then crashes are spooled"
        return Check(name, Level.PROBLEM, str(e), hint)
    if not status.get("ready"):
        return Check(name, Level.PROBLEM, "running, but not ready", "journalctl -u crashd")
    return _ok(name, f"crashd {status.get('version')}, pid {status.get('pid')}")


def check_configuration(paths: Paths) -> Check:
    """Is the configuration one that the daemon takes?"""
    from crashd import configfiles

    name = "configuration"
    try:
        configfiles.load(paths)
        files = configfiles.find_files(paths)
    except CrashdError as e:
        return Check(name, Level.PROBLEM, str(e).split("\n")[0], "crashd check-config tells more")
    return _ok(name, ", ".join(map(str, files)) or "all defaults")


def check_state_dir(paths: Paths) -> Check:
    """Is the state directory private?"""
    name = "state directory"
    directory = paths.state_dir
    try:
        status = directory.lstat()
    except OSError as e:
        return Check(name, Level.PROBLEM, f"{directory}: {e.strerror}", "start crashd once")
    if not stat.S_ISDIR(status.st_mode):
        return Check(name, Level.PROBLEM, f"{directory} is not a directory")
    if os.geteuid() == 0 and status.st_uid != 0:
        text = f"{directory} belongs to uid {status.st_uid}"
        return Check(name, Level.PROBLEM, text, f"chown root: {directory}")
    if status.st_mode & 0o077:
        text = f"{directory} has mode {stat.S_IMODE(status.st_mode):04o}: others can look in"
        return Check(name, Level.PROBLEM, text, f"chmod 0700 {directory}")
    return _ok(name, str(directory))


def check_free_space(paths: Paths) -> Check:
    """Is there room for the next core?"""
    name = "free space"
    try:
        filesystem = os.statvfs(paths.state_dir)
    except OSError as e:
        return Check(name, Level.PROBLEM, f"{paths.state_dir}: {e.strerror}")
    free = filesystem.f_bavail * filesystem.f_frsize
    total = filesystem.f_blocks * filesystem.f_frsize
    text = f"{format_size(free)} of {format_size(total)}"
    hint = "crashctl delete, or make room on that file system"
    if filesystem.f_files and not filesystem.f_favail:
        return Check(name, Level.PROBLEM, f"no inodes are left in {paths.state_dir}", hint)
    if free < FREE_MIN_BYTES:
        return Check(name, Level.PROBLEM, text, hint)
    if free < FREE_LOW_BYTES or free < total * FREE_LOW_SHARE:
        return Check(name, Level.WARNING, text, hint)
    return _ok(name, text)


def check_spool(paths: Paths, now_ns: int) -> Check:
    """Are crashes waiting that the daemon should have taken in?"""
    from crashd.store.spool import ready_names

    name = "spool"
    try:
        waiting = ready_names(paths, now_ns)
        bad = [entry for entry in os.listdir(paths.spool) if entry.endswith(".bad")]
    except (OSError, UnavailableError) as e:
        return Check(name, Level.WARNING, f"cannot be looked into: {e}", "run as root")
    if waiting:
        text = f"{len(waiting)} crashes wait to be taken in"
        return Check(name, Level.WARNING, text, "start crashd; if it runs: journalctl -u crashd")
    if bad:
        text = f"{len(bad)} crashes could not be understood"
        return Check(name, Level.WARNING, text, f"look at {paths.spool}/*.bad, then remove them")
    return _ok(name, "empty")


def check_index(paths: Paths) -> Check:
    """Can the index be read?"""
    from crashd.store.index import Index

    name = "index"
    if not os.access(paths.state_dir, os.R_OK | os.X_OK, effective_ids=True):
        return Check(name, Level.WARNING, "cannot be looked at", "run as root")
    if not paths.index.exists():
        return Check(name, Level.PROBLEM, "there is none", "start crashd, or crashctl reindex")
    try:
        index = Index.open(paths.index, readonly=True)
        try:
            count = len(index.ids())
        finally:
            index.close()
    except IndexCorruptError as e:
        return Check(name, Level.PROBLEM, str(e), "crashctl reindex")
    except UnavailableError as e:
        return Check(name, Level.PROBLEM, str(e))
    return _ok(name, f"{count} crashes")


def check_boot_settings(paths: Paths) -> Check:
    """Does another package's sysctl.d file take core_pattern away at the next boot?"""
    name = "other handlers"
    winner = find_boot_setting(paths.root)
    if winner is not None:
        file, value = winner
        if not is_ours(value, str(paths.handler)):
            text = f"{file} gives crashes to {handler_of(value) or repr(value)}"
            hint = f"link /etc/sysctl.d/{file.name} to /dev/null, or install 60-crashd.conf"
            return Check(name, Level.WARNING, text, hint)
    if is_apport_enabled(paths.root):
        text = "apport is enabled and registers itself when it starts"
        return Check(name, Level.WARNING, text, "systemctl disable --now apport")
    return _ok(name, "none")


def find_boot_setting(root: Path) -> tuple[Path, str] | None:
    """Find the sysctl.d file that sets kernel.core_pattern last, and to what; None for no file."""
    files: dict[str, Path] = {}
    for directory in SYSCTL_DIRS:
        for file in sorted((root / directory).glob("*.conf")):
            files[file.name] = file
    found = None
    for _, file in sorted(files.items()):
        for line in _read(file).decode("utf-8", "surrogateescape").splitlines():
            key, equals, value = line.strip().partition("=")
            key = key.strip().lstrip("-").replace("/", ".")
            if equals and key == sysctl.PATTERN:
                found = (file, value.strip())
    return found


def is_apport_enabled(root: Path) -> bool:
    """Tell whether Ubuntu's apport is installed and not turned off."""
    if not (root / "usr/share/apport/apport").exists():
        return False
    lines = _read(root / "etc/default/apport").decode("utf-8", "replace").splitlines()
    return not any(line.strip() == "enabled=0" for line in lines)


def check_core_limit(limits: tuple[int, int]) -> Check:
    """Would a program started from this shell leave a core?"""
    name = "ulimit -c"
    soft, _ = limits
    if soft == resource.RLIM_INFINITY:
        return _ok(name, "unlimited in this shell")
    hint = "ulimit -c unlimited before you start programs by hand; services: LimitCORE=infinity"
    if soft < os.sysconf("SC_PAGE_SIZE"):
        text = f"{soft} in this shell: its programs leave metadata but no core"
        return Check(name, Level.WARNING, text, hint)
    text = f"{format_size(soft)} in this shell: larger cores are cut"
    return Check(name, Level.WARNING, text, hint)


def _read(path: Path) -> bytes:
    """Read a file of bounded size; empty where it cannot be read. Never blocks on a FIFO."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        return os.read(fd, _FILE_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
