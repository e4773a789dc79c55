"""What `crashctl doctor` makes of the facts about a host: what it found, why that matters, and the
command that mends it. Pure; the facts are read by cli/doctorfacts.py and edge/hostfacts.py.

This module has the checks of crashd itself, doctorhost.py those of the host around it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from crashd.domain.crash.corepattern import handler_of, is_ours
from crashd.domain.units import format_size

FREE_MIN_BYTES: Final = 64 << 20
FREE_LOW_BYTES: Final = 1 << 30
FREE_LOW_SHARE: Final = 0.05
FREE_INODES_LOW: Final = 1000

PATTERN: Final = "kernel.core_pattern"
PIPE_LIMIT: Final = "kernel.core_pipe_limit"
SUID_DUMPABLE: Final = "fs.suid_dumpable"


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


WHY: Final[Mapping[str, str]] = {
    "core_pattern": "The kernel gives crashes to whoever core_pattern names, and to nobody else.",
    "handler": "The kernel runs this program as root for each crash; without it cores are dropped.",
    "interpreter": "The kernel starts it for each crash; without it cores are dropped.",
    "core_pipe_limit": "At 0 the kernel does not wait: /proc/PID is gone before it can be read.",
    "suid_dumpable": "It decides whether programs that change privileges dump, and for whose eyes.",
    "kernel features": "Without them a crash is caught in a slower way, or by pid, which can race.",
    "daemon": "Without it crashes are only spooled: no index, no limits, no metrics.",
    "configuration": "A daemon does not start with a configuration that it does not understand.",
    "state directory": "Cores hold passwords and keys: nobody else may look into it.",
    "free space": "A core that does not fit is cut, or not kept at all.",
    "spool": "What waits there is not in the index, and takes space that retention does not see.",
    "index": "list, info and retention go by the index.",
    "other handlers": "Whoever sets core_pattern last gets the crashes: at boot, or at its start.",
    "boot settings": "They undo crashd's at the next boot, or when a package runs sysctl --system.",
    "cleaners": "They delete crashes behind crashd's back, at any age that they see fit.",
    "core limits": "crashd honours RLIMIT_CORE: a process that may not dump leaves metadata alone.",
    "core filters": "What coredump_filter leaves out no debugger can show.",
    "timeouts": "systemd sends SIGKILL when the time is over, which ends a dump in its middle.",
    "ulimit -c": "It is what programs started by hand from this shell may dump.",
    "journal": "crashd tells of crashes there, and coredumpctl reads them there.",
    "clock": "Crashes are named, ordered and expired by time.",
    "kernel dumps": "A panic of the kernel leaves nothing behind unless kdump is ready for it.",
    "test crash": "It is the whole way of a crash, from the kernel to the index.",
}
"""Why each check matters, by its name."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    text: str
    """What was found, in a line."""
    hint: str | None = None
    """The command that mends it."""

    @property
    def why(self) -> str:
        """Why it matters."""
        return WHY[self.name]

    def to_json(self) -> dict[str, str | None]:
        """Build the JSON object."""
        return {
            "name": self.name,
            "level": self.level.value,
            "text": self.text,
            "why": self.why,
            "hint": self.hint,
        }


def passed(name: str, text: str) -> Check:
    """Make a check that found nothing wrong."""
    return Check(name, Level.OK, text)


def warned(name: str, text: str, hint: str | None = None) -> Check:
    """Make a check that found what makes crashes less than they could be."""
    return Check(name, Level.WARNING, text, hint)


def failed(name: str, text: str, hint: str | None = None) -> Check:
    """Make a check that found what makes crashes vanish."""
    return Check(name, Level.PROBLEM, text, hint)


@dataclass(frozen=True, slots=True)
class Setting:
    """A sysctl as it is now: exactly one of both is set."""

    value: str | None = None
    error: str | None = None

    @property
    def number(self) -> int | None:
        """Its number; None for what is none."""
        text = self.value or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


@dataclass(frozen=True, slots=True)
class HandlerFacts:
    """The program that core_pattern names."""

    path: str
    error: str | None = None
    """Why it cannot be looked at."""
    regular: bool = True
    distrust: str | None = None
    """What others than root can replace of it, or of the path to it."""
    noexec: str | None = None
    """The mount point of its file system, where that is mounted noexec."""
    executable: bool = True
    current: bool = True
    """It is this version's."""
    interpreter: str | None = "/usr/bin/python3"
    """As its first line names it."""
    interpreter_runs: bool = True


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The state directory and what is in it; an error is why that part could not be looked at."""

    path: str
    error: str | None = None
    is_directory: bool = True
    foreign_owner: int | None = None
    """Whose it is, where it should be root's."""
    mode: int = 0o700
    free_bytes: int = 0
    total_bytes: int = 0
    free_inodes: int | None = None
    """None where the file system does not count them."""
    spool_path: str = ""
    spool_waiting: int = 0
    spool_bad: int = 0
    spool_error: str | None = None
    index_count: int = 0
    index_error: str | None = None
    index_hint: str | None = None
    index_path: str = ""
    index_wal_bytes: int = 0
    """Where it is more than any reader of ours makes of it."""
    index_seen: bool = True
    """False: it may not be looked at."""


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """The daemon's own word, and its configuration's."""

    status: Mapping[str, Any] | None = None
    error: str | None = None
    config_files: tuple[str, ...] = ()
    config_error: str | None = None
    capture_mode: str = "auto"


def check_core_pattern(setting: Setting, handler: str) -> Check:
    """Does the kernel give crashes to our handler?"""
    name = "core_pattern"
    if setting.value is None:
        return failed(name, setting.error or "cannot be read", "run as root on the host itself")
    if is_ours(setting.value, handler):
        return passed(name, setting.value)
    other = handler_of(setting.value)
    owner = f"crashes go to {other}" if other else f"{setting.value!r} is not crashd's"
    return failed(name, owner, "crashctl install")


def check_handler(facts: HandlerFacts) -> Check:
    """Is the handler there, this version's, and safe from others?"""
    name, path = "handler", facts.path
    if facts.error:
        return failed(name, f"{path}: {facts.error}", "crashctl install")
    if not facts.regular:
        return failed(name, f"{path} is not a regular file", f"rm {path}; crashctl install")
    if facts.distrust:
        hint = "make it root's (chown root) and writable by nobody else (chmod go-w)"
        return failed(name, facts.distrust, hint)
    if facts.noexec:
        text = f"{path} is on a file system mounted noexec: the kernel cannot start it"
        return failed(name, text, f"mount -o remount,exec {facts.noexec}")
    if not facts.executable:
        return failed(name, f"{path} is not executable", "crashctl install")
    if not facts.current:
        text = f"{path} is of another version of crashd"
        return warned(name, text, "systemctl restart crashd")
    return passed(name, path)


def check_interpreter(facts: HandlerFacts) -> Check:
    """Can the kernel run the handler's interpreter?"""
    name = "interpreter"
    if facts.error:
        return failed(name, "there is no handler to look at", "crashctl install")
    if facts.interpreter is None:
        return failed(name, "the handler names none", "crashctl install")
    if not facts.interpreter_runs:
        text = f"{facts.interpreter} is not there or cannot be run"
        return failed(name, text, "apt-get install python3-minimal")
    return passed(name, facts.interpreter)


def check_pipe_limit(setting: Setting) -> Check:
    """Does the kernel keep /proc/PID of a crashed process for us?"""
    name = "core_pipe_limit"
    if setting.number is None:
        return failed(name, setting.error or f"is {setting.value!r}", "crashctl install")
    if setting.number == 0:
        text = "0: a crashed process is gone before it could be looked at"
        return failed(name, text, "crashctl install")
    return passed(name, f"{setting.number} crashes at the same time")


def check_suid_dumpable(setting: Setting) -> Check:
    """Do programs with privileges of their own leave a core, and a safe one?"""
    name = "suid_dumpable"
    if setting.number is None:
        return failed(name, setting.error or f"is {setting.value!r}", "crashctl install")
    hint = "sysctl fs.suid_dumpable=2"
    match setting.number:
        case 2:
            return passed(name, "2: set-user-ID programs dump, for root only")
        case 1:
            return failed(name, "1: users can read the memory of set-user-ID programs", hint)
    text = f"{setting.number}: crashes of set-user-ID programs leave no trace"
    return warned(name, text, hint)


def check_daemon(facts: DaemonFacts) -> Check:
    """Does the daemon run, ready and registered?"""
    name = "daemon"
    if facts.status is None:
        return failed(name, facts.error or "does not answer", "systemctl start crashd")
    if not facts.status.get("ready"):
        return failed(name, "running, but not ready", "journalctl -u crashd")
    return passed(name, f"crashd {facts.status.get('version')}, pid {facts.status.get('pid')}")


def check_configuration(facts: DaemonFacts) -> Check:
    """Is the configuration one that the daemon takes?"""
    name = "configuration"
    if facts.config_error:
        return failed(name, facts.config_error, "crashd check-config")
    return passed(name, ", ".join(facts.config_files) or "all defaults")


def check_state_dir(store: StoreFacts) -> Check:
    """Is the state directory private?"""
    name, path = "state directory", store.path
    if store.error:
        return failed(name, f"{path}: {store.error}", "systemctl start crashd")
    if not store.is_directory:
        hint = f"mv {path} {path}.old; systemctl restart crashd"
        return failed(name, f"{path} is not a directory", hint)
    if store.foreign_owner is not None:
        text = f"{path} belongs to uid {store.foreign_owner}"
        return failed(name, text, f"chown root:root {path}")
    if store.mode & 0o077:
        text = f"{path} has mode {store.mode & 0o7777:04o}: others can look in"
        return failed(name, text, f"chmod 0700 {path}")
    return passed(name, path)


def check_free_space(store: StoreFacts) -> Check:
    """Is there room for the next core?"""
    name = "free space"
    if store.error:
        return failed(name, f"{store.path}: {store.error}", "systemctl start crashd")
    free, total = store.free_bytes, store.total_bytes
    text = f"{format_size(free)} of {format_size(total)}"
    hint = f"crashctl delete, or make room: du -xh --max-depth=2 {store.path}"
    if store.free_inodes == 0:
        return failed(name, f"no inodes are left in {store.path}", hint)
    if free < FREE_MIN_BYTES:
        return failed(name, text, hint)
    if store.free_inodes is not None and store.free_inodes < FREE_INODES_LOW:
        return warned(name, f"{store.free_inodes} inodes are left in {store.path}", hint)
    if free < FREE_LOW_BYTES or free < total * FREE_LOW_SHARE:
        return warned(name, text, hint)
    return passed(name, text)


def check_spool(store: StoreFacts) -> Check:
    """Are crashes waiting that the daemon should have taken in?"""
    name = "spool"
    if store.spool_error:
        return warned(name, f"cannot be looked into: {store.spool_error}", "sudo crashctl doctor")
    if store.spool_waiting:
        text = f"{store.spool_waiting} crashes wait to be taken in"
        return warned(name, text, "systemctl start crashd; if it runs: journalctl -u crashd")
    if store.spool_bad:
        text = f"{store.spool_bad} crashes could not be understood"
        return warned(name, text, f"ls -l {store.spool_path}/*.bad, then remove them")
    return passed(name, "empty")


def check_index(store: StoreFacts) -> Check:
    """Can the index be read?"""
    name = "index"
    if not store.index_seen:
        return warned(name, "cannot be looked at", "sudo crashctl doctor")
    if store.index_error:
        return failed(name, store.index_error, store.index_hint)
    if store.index_wal_bytes:
        text = f"its WAL has {format_size(store.index_wal_bytes)}: somebody reads it without an end"
        return warned(name, text, f"fuser -v {store.index_path}, and end what has no need of it")
    return passed(name, f"{store.index_count} crashes")


def check_own(
    sysctls: Mapping[str, Setting], handler: HandlerFacts, daemon: DaemonFacts, store: StoreFacts
) -> Iterator[Check]:
    """Make all checks of crashd itself; the first is that of core_pattern."""
    yield check_core_pattern(sysctls[PATTERN], handler.path)
    yield check_handler(handler)
    yield check_interpreter(handler)
    yield check_pipe_limit(sysctls[PIPE_LIMIT])
    yield check_suid_dumpable(sysctls[SUID_DUMPABLE])
    yield check_daemon(daemon)
    yield check_configuration(daemon)
    yield check_state_dir(store)
    yield check_free_space(store)
    yield check_spool(store)
    yield check_index(store)
