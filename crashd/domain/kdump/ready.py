"""Whether the next crash of the kernel would leave a dump behind, and what to do if not. Pure.

What `kdump-config show`/`status` and `kdumpctl status` tell, with the traps that they do not know
of (TESTBED.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from crashd.domain.kdump.conf import (
    DEFAULT_PATH,
    Finding,
    KdumpConf,
    KdumpTools,
    Severity,
    SysconfigKdump,
    find_kernel_traps,
)
from crashd.domain.kdump.crashkernel import parse_crashkernel
from crashd.domain.units import format_size

DUMP_SHARE: Final = 10
"""A dump without free, cached and user pages (-d 31) seldom is more than a tenth of the memory."""
DUMP_MIN_BYTES: Final = 128 << 20

SYSCTLS: Final = (
    "panic",
    "panic_on_oops",
    "panic_on_warn",
    "hung_task_panic",
    "softlockup_panic",
    "hardlockup_panic",
    "unknown_nmi_panic",
    "panic_on_rcu_stall",
    "sysrq",
)
"""Of /proc/sys/kernel, those that decide what becomes of a crash."""


@dataclass(frozen=True, slots=True)
class Target:
    """A directory that dumps are saved in."""

    path: str
    exists: bool
    free_bytes: int | None = None
    total_bytes: int | None = None
    distrust: str | None = None
    """Why others can replace what is in it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read; None is what could not be."""

    loaded: bool | None
    """/sys/kernel/kexec_crash_loaded."""
    reserved_bytes: int | None
    """/sys/kernel/kexec_crash_size."""
    cmdline: bytes
    ram_bytes: int
    sysctls: Mapping[str, int] = field(default_factory=dict)
    tools: KdumpTools | None = None
    conf: KdumpConf | None = None
    sysconfig: SysconfigKdump | None = None
    installed: tuple[str, ...] = ()
    """Of kdump-tools, kdump-utils and suse-kdump those whose program is there."""
    targets: tuple[Target, ...] = ()
    apport_cleans: bool = False
    """Apport's daily job is there, which deletes dumps older than a week."""
    pstore: str | None = None
    """The backend of pstore; None: there is none."""
    problems: tuple[str, ...] = ()
    """Files that could not be read, a line each."""

    @property
    def tool_count(self) -> int | None:
        """How many dumps the installed tool is told to keep; None: no tool says."""
        counts = [c for c in (self.tools, self.sysconfig) if c is not None]
        known = [c.max_dumps for c in counts if c.max_dumps]
        return known[0] if known else None


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict."""

    ready: bool
    """No finding is a fault."""
    findings: tuple[Finding, ...]
    """The worst first."""
    crashkernel_bytes: int
    needed_bytes: int
    """What a dump is thought to take."""


_ORDER = {Severity.FAULT: 0, Severity.WARNING: 1, Severity.NOTICE: 2}
_START = {
    "kdump-tools": "systemctl enable --now kdump-tools, then kdump-config show",
    "kdump-utils": "systemctl enable --now kdump, then kdumpctl status",
    "suse-kdump": "systemctl enable --now kdump, then kdumptool commandline -u",
}


def dump_paths(facts: Facts) -> tuple[str, ...]:
    """Name the directories that dumps are saved in, by the makers' own settings."""
    paths = [DEFAULT_PATH]
    for conf in (facts.tools, facts.conf, facts.sysconfig):
        directory = conf.directory if conf is not None else None
        if directory and directory.startswith("/") and ".." not in directory.split("/"):
            paths.append(directory.rstrip("/") or "/")
    return tuple(dict.fromkeys(path for path in paths if path != "/"))


def assess(facts: Facts) -> Readiness:
    """Judge what would become of the next crash of the kernel."""
    needed = _needed_bytes(facts)
    crashkernel = parse_crashkernel(facts.cmdline)
    findings = [
        *_of_the_load(facts),
        *find_kernel_traps(crashkernel, facts.reserved_bytes, facts.sysctls.get("panic_on_oops")),
        *_of_the_makers(facts),
        *_of_the_targets(facts, needed),
        *_of_others(facts),
    ]
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    ready = all(finding.severity is not Severity.FAULT for finding in findings)
    return Readiness(ready, tuple(findings), facts.reserved_bytes or 0, needed)


def _needed_bytes(facts: Facts) -> int:
    level_known = True
    if facts.tools is not None and facts.tools.arguments is not None:
        level_known = any(word.startswith("-d") or word == "-d" for word in facts.tools.arguments)
    return max(DUMP_MIN_BYTES, facts.ram_bytes // DUMP_SHARE if level_known else facts.ram_bytes)


def _of_the_load(facts: Facts) -> list[Finding]:
    if facts.loaded:
        return []
    if not facts.installed:
        text = "no tool that saves kernel dumps is installed"
        hint = "apt-get install kdump-tools (Debian), dnf install kdump-utils (Fedora, RHEL)"
        return [Finding("no-tool", Severity.FAULT, text, hint)]
    if facts.loaded is None:
        text = "this kernel cannot load a capture kernel (CONFIG_KEXEC, CONFIG_CRASH_DUMP)"
        return [Finding("no-kexec", Severity.FAULT, text)]
    text = "no capture kernel is loaded: a crash leaves nothing behind"
    return [Finding("not-loaded", Severity.FAULT, text, _START[facts.installed[0]])]


def _of_the_makers(facts: Facts) -> list[Finding]:
    """Take over what is wrong in the files of those makers that are there."""
    found: list[Finding] = []
    confs = (
        ("kdump-tools", facts.tools),
        ("kdump-utils", facts.conf),
        ("suse-kdump", facts.sysconfig),
    )
    for name, conf in confs:
        if conf is None:
            continue
        used = not facts.installed or name in facts.installed
        found += [f for f in conf.findings if used or f.severity is Severity.NOTICE]
    found += [
        Finding("unreadable", Severity.WARNING, problem, "make it root's, and readable")
        for problem in facts.problems
    ]
    return found


def _of_the_targets(facts: Facts, needed: int) -> list[Finding]:
    found = []
    for target in facts.targets:
        if target.free_bytes is not None and target.free_bytes < needed:
            text = (
                f"{target.path} has {format_size(target.free_bytes)} free, a dump of this "
                f"machine is thought to take {format_size(needed)}"
            )
            hint = "make room, or lower crashd's retention.kernel.max_count"
            full = target.free_bytes < DUMP_MIN_BYTES
            severity = Severity.FAULT if full else Severity.WARNING
            found.append(Finding("no-space", severity, text, hint))
        if target.distrust is not None:
            text = f"{target.path} {target.distrust}: dumps there can be replaced by others"
            hint = f"chown root {target.path}; chmod go-w {target.path}"
            found.append(Finding("target-open", Severity.WARNING, text, hint))
    if not any(target.exists for target in facts.targets) and facts.targets:
        text = f"{facts.targets[0].path} does not exist yet: the first dump makes it"
        found.append(Finding("no-target", Severity.NOTICE, text))
    return found


def _of_others(facts: Facts) -> list[Finding]:
    found = []
    if facts.apport_cleans:
        text = (
            "Apport's daily job deletes kernel dumps older than 7 days, whatever crashd is set to"
        )
        hint = "copy what you need, or remove /etc/cron.daily/apport"
        found.append(Finding("other-cleaner", Severity.NOTICE, text, hint))
    if facts.sysctls.get("panic") == 0 and not facts.loaded:
        text = "kernel.panic is 0: without a capture kernel the machine halts instead of rebooting"
        found.append(Finding("panic-halts", Severity.WARNING, text, "set kernel.panic=10"))
    if not facts.loaded and facts.pstore is not None:
        text = f"pstore ({facts.pstore}) keeps the end of the log of a crash; crashd reads it"
        found.append(Finding("pstore", Severity.NOTICE, text))
    return found
