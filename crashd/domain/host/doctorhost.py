"""The checks of `crashctl doctor` on the host around crashd. Pure, like doctor.py.

They judge the kernel, other collectors, the running services, the journal and the clock.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Final

from crashd.domain.crash.corepattern import handler_of, is_ours
from crashd.domain.crash.procfs import RLIM_INFINITY
from crashd.domain.host.doctor import (
    PATTERN,
    PIPE_LIMIT,
    SUID_DUMPABLE,
    Check,
    failed,
    passed,
    warned,
)
from crashd.domain.host.sysctld import BootSetting
from crashd.domain.host.unittimes import NEVER, UnitTimes
from crashd.domain.kdump.conf import Severity
from crashd.domain.kdump.ready import Readiness
from crashd.domain.units import format_duration, format_size

NAMED_MAX: Final = 5
"""Units that a finding names."""
PAGE_BYTES: Final = 4096
"""The smallest core: fs/binfmt_elf.c dumps nothing below this."""
DUMP_BYTES_PER_SECOND: Final = 100 << 20
"""The speed of a slow dump, through the kernel's pipe on a busy host."""
CLOCK_SLACK_NS: Final = 60 * 10**9

FILTER_ANON_PRIVATE: Final = 1 << 0  # core(5), "Controlling which mappings are written"
FILTER_ELF_HEADERS: Final = 1 << 4
OWN_UNITS: Final = ("crashd.service", "crashd.socket", "crashd-analyze")
"""Prefixes of the names of units that must not dump."""


@dataclass(frozen=True, slots=True)
class RunningUnit:
    """The running processes of one unit, or of one container."""

    unit: str
    in_container: bool
    pid: int
    """The pid of the largest process."""
    count: int
    core_limit: int | None
    """The highest soft RLIMIT_CORE among them, in bytes, because a helper may limit itself."""
    core_filter: int | None
    """The union of their coredump_filters."""
    size_bytes: int
    """Resident memory of the largest process."""
    times: UnitTimes | None = None
    """None if it is not a systemd service."""


@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel supports."""

    core_modes: tuple[str, ...] = ()
    """kernel.core_modes; empty if the kernel does not have it."""
    pidfd: bool = True
    pidfd_info: bool = True
    """ioctl PIDFD_GET_INFO, 6.13."""
    pagemap_scan: bool | None = True
    """None if it could not be tried."""


@dataclass(frozen=True, slots=True)
class Journal:
    """systemd-journald."""

    systemd: bool
    """Whether systemd booted this host."""
    socket: bool = True
    persistent: bool = True


@dataclass(frozen=True, slots=True)
class Clock:
    """The host's clock."""

    now_ns: int
    newest_ns: int
    """The time of the newest crash, or of crashd's own files: now cannot be earlier."""
    newest: str
    """What `newest_ns` is the time of."""
    synchronized: bool | None = None
    """None if the kernel does not say."""


@dataclass(frozen=True, slots=True)
class Cleaner:
    """A rule or script that deletes files by age."""

    file: str
    path: str
    age: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All facts about the host."""

    features: Features
    journal: Journal
    clock: Clock
    shell_limit: int
    """Soft RLIMIT_CORE of the caller, RLIM_INFINITY for none."""
    boot: Mapping[str, BootSetting] = field(default_factory=dict)
    """What sysctl.d sets, by the sysctl's name."""
    collectors: tuple[str, ...] = ()
    """Those of `apport` and `abrt` that register when they start."""
    cleaners: tuple[Cleaner, ...] = ()
    services: tuple[RunningUnit, ...] = ()
    processes_left: int = 0
    """Processes that were not examined, because there are too many."""


def check_features(features: Features, capture_mode: str) -> Check:
    """Check that this kernel has the features that capture uses."""
    name = "kernel features"
    modes = features.core_modes
    if modes and "pipe" not in modes:
        text = f"the kernel's core modes lack pipe ({' '.join(modes)})"
        return failed(name, text, "boot a kernel that can pipe cores")
    if capture_mode == "socket" and modes and "socket" not in modes:
        hint = 'set capture.mode = "pipe" in /etc/crashd/crashd.toml; systemctl restart crashd'
        return failed(name, 'capture.mode is "socket", which needs Linux 6.17', hint)
    if not features.pidfd:
        return warned(name, "no pidfd (Linux 5.3): a pid may be reused", "boot Linux 5.3 or later")
    words = ["pidfd"]
    words += ["PIDFD_GET_INFO"] if features.pidfd_info else []
    words += ["PAGEMAP_SCAN"] if features.pagemap_scan else []
    words += ["core socket"] if "socket" in modes else []
    if features.pagemap_scan is False:
        words.append("no PAGEMAP_SCAN (Linux 6.7): crashd reads pagemap instead")
    return passed(name, ", ".join(words))


def check_analysis(missing: Sequence[str]) -> Check:
    """Check that crashes can be explained, with the names of modules that are not installed."""
    name = "analysis"
    if not missing:
        return passed(name, "everything that it needs is installed")
    text = f"not installed: {', '.join(missing)}: crashes are kept, but not explained"
    hint = None
    if "drgn" in missing:
        hint = "install the distribution's python3-drgn, or drgn built from source (it has wheels\n"
        hint += "for x86-64 only); crashes of before are explained then"
    return warned(name, text, hint)


def check_other_handlers(around: Surroundings, handler: str) -> Check:
    """Check that no other collector takes core_pattern."""
    name = "other handlers"
    winner = around.boot.get(PATTERN)
    if winner is not None and not is_ours(winner.value, handler):
        text = f"{_place(winner)} gives crashes to {handler_of(winner.value) or repr(winner.value)}"
        file = winner.file.rpartition("/")[2]
        hint = _comment_out(winner) or f"ln -s /dev/null {quote('/etc/sysctl.d/' + file)}"
        return warned(name, text, f"{hint}; crashctl install")
    if "apport" in around.collectors:
        text = "apport is enabled and registers itself when it starts"
        return warned(name, text, "systemctl disable --now apport; crashctl install")
    if "abrt" in around.collectors:
        text = "abrt-ccpp is enabled and registers itself when it starts"
        return warned(name, text, "systemctl disable --now abrt-ccpp; crashctl install")
    return passed(name, "none")


def _place(setting: BootSetting) -> str:
    """Name the file, and the line where that alone has to go."""
    if not _comment_out(setting):
        return setting.file
    return f"{setting.target or setting.file}:{setting.line}"


def _comment_out(setting: BootSetting) -> str:
    """Return the command that takes one line out of an administrator's file; "" for a package's
    file. To mask the whole file would undo all other settings in it.
    """
    file = setting.target or setting.file
    if not setting.line or not (setting.target or "/etc/sysctl" in file):
        return ""
    return f"sed -i '{setting.line}s/^/#/' {quote(file)}"


def check_boot_settings(boot: Mapping[str, BootSetting]) -> Check:
    """Check that no sysctl.d file overrides the companions of core_pattern."""
    name = "boot settings"
    limit, suid = boot.get(PIPE_LIMIT), boot.get(SUID_DUMPABLE)
    if limit is not None and limit.value == "0":
        text = f"{limit.file} sets {PIPE_LIMIT} = 0"
        hint = _comment_out(limit) or f"sed -i '/core_pipe_limit/d' {quote(limit.file)}"
        return warned(name, text, hint)
    if suid is not None and suid.value != "2":
        text = f"{suid.file} sets {SUID_DUMPABLE} = {suid.value}"
        return warned(name, text, "echo fs.suid_dumpable=2 > /etc/sysctl.d/zz-crashd.conf")
    return passed(name, "none override crashd's")


def check_cleaners(cleaners: Sequence[Cleaner]) -> Check:
    """Check that nothing deletes crashes by age."""
    name = "cleaners"
    if not cleaners:
        return passed(name, "none")
    told = "; ".join(f"{c.file} deletes {c.path} after {c.age}" for c in cleaners[:NAMED_MAX])
    first = cleaners[0].file
    if "/tmpfiles.d/" in first:
        masked = quote("/etc/tmpfiles.d/" + first.rpartition("/")[2])
        return warned(name, told, f"ln -s /dev/null {masked}")
    return warned(name, told, f"chmod -x {quote(first)}")


def _watched(services: Sequence[RunningUnit]) -> list[RunningUnit]:
    return [s for s in services if not s.unit.startswith(OWN_UNITS)]


def _name_units(
    services: Sequence[RunningUnit], tell: Callable[[RunningUnit], str] | None = None
) -> str:
    names = [s.unit + (f" ({tell(s)})" if tell else "") for s in services[:NAMED_MAX]]
    more = len(services) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def check_core_limits(services: Sequence[RunningUnit], left: int = 0) -> Check:
    """Check that running services may leave a core; `left` processes were not examined."""
    name = "core limits"
    watched = [s for s in _watched(services) if s.core_limit is not None]
    none = [s for s in watched if (s.core_limit or 0) < PAGE_BYTES]
    if none:
        text = f"{len(none)} of {len(watched)} units leave no core: {_name_units(none)}"
        return warned(name, text, _limit_hint(none[0]))
    cut = [s for s in watched if (s.core_limit or 0) < s.size_bytes]
    if cut:
        told = _name_units(
            cut, lambda s: f"{format_size(s.size_bytes)} of {format_size(s.core_limit or 0)}"
        )
        return warned(name, f"{len(cut)} units' cores will be cut: {told}", _limit_hint(cut[0]))
    unseen = f"; {left} processes were not examined" if left else ""
    return passed(name, f"high enough for {len(watched)} units{unseen}")


def check_ignored_limits(services: Sequence[RunningUnit]) -> Check:
    """Check that the kernel starts a handler for running services, if crashd ignores their core
    limits: for a limit of exactly 1 byte it does not (fs/coredump.c, do_coredump).
    """
    name = "core limits"
    none = [s for s in _watched(services) if s.core_limit == 1]
    if none:
        text = f"the kernel reports no crash of {_name_units(none)}: LimitCORE is 1"
        return warned(name, text, _limit_hint(none[0]))
    return passed(name, 'do not matter: capture.rlimit is "ignore"')


def _limit_hint(service: RunningUnit) -> str:
    if service.in_container:
        return "run the container with --ulimit core=-1"
    if service.unit.endswith(".service"):
        restart = f"systemctl restart {quote(service.unit)}"
        return f"{_property(service.unit, 'LimitCORE=infinity')}; {restart}"
    return "echo '* soft core unlimited' > /etc/security/limits.d/core.conf, and log in again"


def _property(unit: str, setting: str) -> str:
    # not `systemctl edit --stdin`, which needs systemd 256
    directory = quote(f"/etc/systemd/system/{unit}.d")
    words = f"mkdir -p {directory}; printf '[Service]\\n{setting}\\n' > {directory}/crashd.conf"
    return f"{words}; systemctl daemon-reload"


def check_core_filters(services: Sequence[RunningUnit]) -> Check:
    """Check that the cores of running services contain what a debugger needs."""
    name = "core filters"
    watched = [s for s in _watched(services) if s.core_filter is not None]
    for bit, lost in (
        (FILTER_ANON_PRIVATE, "stacks and heap are missing from the cores of"),
        (FILTER_ELF_HEADERS, "build-ids are missing from the cores of"),
    ):
        without = [s for s in watched if not (s.core_filter or 0) & bit]
        if without:
            first = without[0]
            hint = f"echo 0x33 > /proc/{first.pid}/coredump_filter"
            if first.unit.endswith(".service") and not first.in_container:
                hint += f"; permanently: {_property(first.unit, 'CoredumpFilter=default')}"
            return warned(name, f"{lost} {_name_units(without)}", hint)
    return passed(name, f"include stacks, heap and build-ids for {len(watched)} units")


def check_timeouts(services: Sequence[RunningUnit]) -> Check:
    """Check that systemd gives each service enough time to dump."""
    name = "timeouts"
    watched = [s for s in _watched(services) if s.times is not None]
    short = [s for s in watched if _dump_ns(s) > _allowed(s)[0]]
    if not short:
        return passed(name, f"long enough for {len(watched)} services")

    def tell(service: RunningUnit) -> str:
        allowed, setting = _allowed(service)
        size = format_size(service.size_bytes)
        return f"{setting}={format_duration(allowed)} for {size}"

    first = short[0]
    seconds = -(-_dump_ns(first) // 10**9)
    setting = f"{_allowed(first)[1]}={max(90, 2 * seconds)}"
    told = f"too short for a dump: {_name_units(short, tell)}"
    return warned(name, told, _property(first.unit, setting))


def _dump_ns(service: RunningUnit) -> int:
    return service.size_bytes * 10**9 // DUMP_BYTES_PER_SECOND


def _allowed(service: RunningUnit) -> tuple[int, str]:
    return service.times.dump_ns if service.times is not None else (NEVER, "")


def check_shell_limit(soft: int) -> Check:
    """Check that a program started from this shell would leave a core."""
    name = "ulimit -c"
    if soft >= RLIM_INFINITY:
        return passed(name, "unlimited in this shell")
    if soft < PAGE_BYTES:
        text = f"{soft} in this shell: its programs leave metadata, but no core"
        return warned(name, text, "ulimit -c unlimited")
    text = f"{format_size(soft)} in this shell: larger cores are cut"
    return warned(name, text, "ulimit -c unlimited")


def check_journal(journal: Journal) -> Check:
    """Check that crashd can log to the journal, and that the journal survives a reboot."""
    name = "journal"
    if not journal.systemd:
        return passed(name, "no systemd here: crashd logs to its standard error")
    if not journal.socket:
        return failed(name, "journald does not listen", "systemctl restart systemd-journald")
    if not journal.persistent:
        hint = "mkdir -p /var/log/journal && journalctl --flush"
        return warned(name, "volatile: lost at the next boot", hint)
    return passed(name, "persistent")


def check_clock(clock: Clock) -> Check:
    """Check that the clock is plausible."""
    name = "clock"
    behind = clock.newest_ns - clock.now_ns
    if behind > CLOCK_SLACK_NS:
        text = f"{format_duration(behind)} behind {clock.newest}"
        return failed(name, text, "timedatectl set-ntp true, or date -s")
    if clock.synchronized is False:
        return warned(name, "not synchronised", "timedatectl set-ntp true")
    return passed(name, "synchronised" if clock.synchronized else "plausible")


def check_kernel_dumps(readiness: Readiness) -> Check:
    """Check that a kernel crash would leave a dump; `crashctl kdump` shows the details."""
    name = "kernel dumps"
    bad = [f for f in readiness.findings if f.severity is not Severity.NOTICE]
    if not bad:
        return passed(name, "kdump is ready")
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return warned(name, bad[0].text + more, "crashctl kdump")


def check_around(
    around: Surroundings, handler: str, capture_mode: str, *, honours_limits: bool = True
) -> Iterator[Check]:
    """Yield all checks of the host; `honours_limits` is capture.rlimit."""
    yield check_features(around.features, capture_mode)
    yield check_other_handlers(around, handler)
    yield check_boot_settings(around.boot)
    yield check_cleaners(around.cleaners)
    if honours_limits:
        yield check_core_limits(around.services, around.processes_left)
    else:
        yield check_ignored_limits(around.services)
    yield check_core_filters(around.services)
    yield check_timeouts(around.services)
    if honours_limits:
        yield check_shell_limit(around.shell_limit)
    yield check_journal(around.journal)
    yield check_clock(around.clock)
