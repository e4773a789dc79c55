"""The checks of `crashctl doctor` on crashd itself: each finding, why it matters, and the fix.

Pure: cli/check/doctorfacts.py and edge/host/hostfacts.py read the facts. doctorhost.py has the
checks of the host around crashd.
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
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


WHY: Final[Mapping[str, str]] = {
    "core_pattern": "The kernel passes crashes only to the program that core_pattern names.",
    "handler": "The kernel runs this program as root at each crash; without it cores are lost.",
    "interpreter": "The kernel starts it for every crash; without it cores are dropped.",
    "core_pipe_limit": "At 0 the kernel does not wait: /proc/PID is gone before crashd reads it.",
    "suid_dumpable": "It decides if programs that change privileges dump, and who may read it.",
    "analysis": "Without it there are no stacks, causes and signatures; cores are kept anyway.",
    "kernel features": "Without them, capture is slower, or relies on pids, which can race.",
    "daemon": "Without it crashes are only spooled: no index, no limits, no metrics.",
    "configuration": "The daemon does not start with an invalid configuration.",
    "state directory": "Cores hold passwords and keys: only root may read them.",
    "free space": "A core that does not fit is cut, or not kept at all.",
    "spool": "Spooled crashes are not in the index, and use space that retention cannot free.",
    "index": "list, info and retention rely on the index.",
    "other handlers": "The program that sets core_pattern last gets the crashes.",
    "boot settings": "They override crashd's at boot, or when a package runs sysctl --system.",
    "cleaners": "They delete crashes without crashd's knowledge, by their own rules.",
    "core limits": "crashd honours RLIMIT_CORE: a process with a limit of 0 leaves only metadata.",
    "core filters": "A debugger cannot show memory that coredump_filter excludes.",
    "timeouts": "systemd sends SIGKILL at the timeout, which cuts a core that is being dumped.",
    "ulimit -c": "It limits the cores of programs started from this shell.",
    "journal": "crashd reports crashes there, and coredumpctl reads them there.",
    "clock": "Crashes are named, ordered and deleted by time.",
    "kernel dumps": "A kernel panic leaves no dump unless kdump is ready.",
    "fleet": "Crashes that do not arrive there are on this host alone, and go with it.",
    "denials": "What SELinux or AppArmor forbids the handler is a crash that is lost.",
    "test crash": "It follows a real crash all the way from the kernel to the index.",
}
"""Why each check matters, by the check's name."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    level: Level
    text: str
    """The finding, in one line."""
    hint: str | None = None
    """The command that fixes it."""

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
    """Return a check that found nothing wrong."""
    return Check(name, Level.OK, text)


def warned(name: str, text: str, hint: str | None = None) -> Check:
    """Return a check that found something that degrades crashes."""
    return Check(name, Level.WARNING, text, hint)


def failed(name: str, text: str, hint: str | None = None) -> Check:
    """Return a check that found something that loses crashes."""
    return Check(name, Level.PROBLEM, text, hint)


@dataclass(frozen=True, slots=True)
class Setting:
    """The present value of a sysctl, or the error; exactly one of the two is set."""

    value: str | None = None
    error: str | None = None
    is_fixed: bool = False
    """Whether not even root can change it here: /proc/sys is read-only, as in containers."""

    def cure(self, command: str) -> str:
        """Return what sets it: a command, and where to run it."""
        return f"{command}, on the host: this container cannot" if self.is_fixed else command

    @property
    def number(self) -> int | None:
        """The value as a number; None if it is not one."""
        text = self.value or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


@dataclass(frozen=True, slots=True)
class HandlerFacts:
    """The program that core_pattern names."""

    path: str
    error: str | None = None
    """Why it cannot be examined."""
    regular: bool = True
    distrust: str | None = None
    """What other users than root can replace: the file, or a part of its path."""
    noexec: str | None = None
    """The mount point of its file system, if that is mounted noexec."""
    executable: bool = True
    current: bool = True
    """Whether it belongs to this version."""
    interpreter: str | None = "/usr/bin/python3"
    """The interpreter in its first line."""
    interpreter_runs: bool = True


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The state directory and its contents; an error says why a part could not be examined."""

    path: str
    error: str | None = None
    is_directory: bool = True
    foreign_owner: int | None = None
    """Its owner, if it should be root."""
    mode: int = 0o700
    free_bytes: int = 0
    total_bytes: int = 0
    free_inodes: int | None = None
    """None if the file system does not count them."""
    spool_path: str = ""
    spool_waiting: int = 0
    spool_bad: int = 0
    spool_error: str | None = None
    index_count: int = 0
    index_error: str | None = None
    index_hint: str | None = None
    index_path: str = ""
    index_wal_bytes: int = 0
    """Set only if it is larger than crashd's own readers can make it."""
    index_seen: bool = True
    """False if the caller may not read it."""


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """The daemon's status, and its configuration."""

    status: Mapping[str, Any] | None = None
    error: str | None = None
    config_files: tuple[str, ...] = ()
    config_error: str | None = None
    capture_mode: str = "auto"
    honours_limits: bool = True
    """capture.rlimit: whether the core limits of processes count."""


def check_core_pattern(setting: Setting, handler: str) -> Check:
    """Check that the kernel passes crashes to our handler."""
    name = "core_pattern"
    if setting.value is None:
        return failed(name, setting.error or "cannot be read", "run as root on the host itself")
    if is_ours(setting.value, handler):
        return passed(name, setting.value)
    other = handler_of(setting.value)
    owner = f"crashes go to {other}" if other else f"{setting.value!r} is not crashd's"
    return failed(name, owner, setting.cure("crashctl install"))


def check_handler(facts: HandlerFacts) -> Check:
    """Check that the handler exists, belongs to this version, and is safe from other users."""
    name, path = "handler", facts.path
    if facts.error:
        return failed(name, f"{path}: {facts.error}", "crashctl install")
    if not facts.regular:
        return failed(name, f"{path} is not a regular file", f"rm {path}; crashctl install")
    if facts.distrust:
        hint = "make root its owner (chown root), and only root able to write it (chmod go-w)"
        return failed(name, facts.distrust, hint)
    if facts.noexec:
        text = f"{path} is on a file system mounted noexec: the kernel cannot start it"
        return failed(name, text, f"mount -o remount,exec {facts.noexec}")
    if not facts.executable:
        return failed(name, f"{path} is not executable", "crashctl install")
    if not facts.current:
        text = f"{path} belongs to another version of crashd"
        return warned(name, text, "systemctl restart crashd")
    return passed(name, path)


def check_interpreter(facts: HandlerFacts) -> Check:
    """Check that the kernel can run the handler's interpreter."""
    name = "interpreter"
    if facts.error:
        return failed(name, "there is no handler", "crashctl install")
    if facts.interpreter is None:
        return failed(name, "the handler names no interpreter", "crashctl install")
    if not facts.interpreter_runs:
        text = f"{facts.interpreter} does not exist or cannot be run"
        return failed(name, text, "apt-get install python3-minimal")
    return passed(name, facts.interpreter)


def check_pipe_limit(setting: Setting) -> Check:
    """Check that the kernel keeps /proc/PID of a crashed process for us."""
    name = "core_pipe_limit"
    if setting.number is None:
        return failed(name, setting.error or f"is {setting.value!r}", "crashctl install")
    if setting.number == 0:
        text = "0: a crashed process is gone before crashd can read it"
        return failed(name, text, setting.cure("crashctl install"))
    return passed(name, f"{setting.number} crashes at the same time")


def check_suid_dumpable(setting: Setting) -> Check:
    """Check that set-user-ID programs leave a core, readable only by root."""
    name = "suid_dumpable"
    if setting.number is None:
        return failed(name, setting.error or f"is {setting.value!r}", "crashctl install")
    hint = setting.cure("sysctl fs.suid_dumpable=2")
    match setting.number:
        case 2:
            return passed(name, "2: set-user-ID programs dump, for root only")
        case 1:
            return failed(name, "1: users can read the memory of set-user-ID programs", hint)
    text = f"{setting.number}: crashes of set-user-ID programs leave no trace"
    return warned(name, text, hint)


def check_daemon(facts: DaemonFacts) -> Check:
    """Check that the daemon runs and is ready."""
    name = "daemon"
    if facts.status is None:
        return failed(name, facts.error or "does not answer", "systemctl start crashd")
    if not facts.status.get("ready"):
        return failed(name, "running, but not ready", "journalctl -u crashd")
    return passed(name, f"crashd {facts.status.get('version')}, pid {facts.status.get('pid')}")


def check_configuration(facts: DaemonFacts) -> Check:
    """Check that the configuration is valid."""
    name = "configuration"
    if facts.config_error:
        return failed(name, facts.config_error, "crashd check-config")
    return passed(name, ", ".join(facts.config_files) or "all defaults")


def check_state_dir(store: StoreFacts) -> Check:
    """Check that the state directory is private."""
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
        text = f"{path} has mode {store.mode & 0o7777:04o}: other users can read it"
        return failed(name, text, f"chmod 0700 {path}")
    return passed(name, path)


def check_free_space(store: StoreFacts) -> Check:
    """Check that there is room for the next core."""
    name = "free space"
    if store.error:
        return failed(name, f"{store.path}: {store.error}", "systemctl start crashd")
    free, total = store.free_bytes, store.total_bytes
    text = f"{format_size(free)} of {format_size(total)}"
    hint = f"crashctl delete, or free space: du -xh --max-depth=2 {store.path}"
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
    """Check that no crashes wait that the daemon should have ingested."""
    name = "spool"
    if store.spool_error:
        return warned(name, f"cannot be read: {store.spool_error}", "sudo crashctl doctor")
    if store.spool_waiting:
        text = f"{store.spool_waiting} crashes wait to be ingested"
        return warned(name, text, "systemctl start crashd; if it runs: journalctl -u crashd")
    if store.spool_bad:
        text = f"{store.spool_bad} malformed crashes were set aside"
        return warned(name, text, f"ls -l {store.spool_path}/*.bad, then remove them")
    return passed(name, "empty")


def check_index(store: StoreFacts) -> Check:
    """Check that the index can be read."""
    name = "index"
    if not store.index_seen:
        return warned(name, "cannot be read by this user", "sudo crashctl doctor")
    if store.index_error:
        return failed(name, store.index_error, store.index_hint)
    if store.index_wal_bytes:
        text = f"its WAL has {format_size(store.index_wal_bytes)}: a reader holds it open"
        return warned(
            name, text, f"fuser -v {store.index_path}, and end a reader that is not needed"
        )
    return passed(name, f"{store.index_count} crashes")


def check_own(
    sysctls: Mapping[str, Setting], handler: HandlerFacts, daemon: DaemonFacts, store: StoreFacts
) -> Iterator[Check]:
    """Yield all checks of crashd itself; the first is that of core_pattern."""
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
