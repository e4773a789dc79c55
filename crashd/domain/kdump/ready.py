"""Whether the next kernel crash would leave a dump behind, and what to do if not. Pure.

It reports what `kdump-config show`/`status` and `kdumpctl status` report, and the traps that they
do not know (TESTBED.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from crashd.domain.kdump.conf import (
    COPIERS,
    DEFAULT_PATH,
    RESERVED_MIN_BYTES,
    ConfFinding,
    KdumpConf,
    KdumpTools,
    Severity,
    SysconfigKdump,
    dump_level,
    find_kernel_traps,
)
from crashd.domain.kdump.crashkernel import parse_crashkernel
from crashd.domain.units import format_size

DUMP_SHARE: Final = 10
"""A dump without free, cached and user pages (-d 31) is seldom more than a tenth of the memory."""
DUMP_MIN_BYTES: Final = 128 << 20

ALLOW_HINT: Final = "crashctl kdump --allow-deletion"
_FREE_PAGES = 16
_CACHE_AND_USER = 2 | 4 | 8
_WANTED_BY_RAM = ((1 << 40, 512 << 20), (64 << 30, 256 << 20))
"""A machine's memory, and what the capture kernel then needs: page tables, devices and
makedumpfile's bitmaps grow with it. Distributions reserve 512 MiB from 64 GiB on; half of that was
seen to be enough.
"""
_CAPTURE_KERNEL_BYTES = 88 << 20
_UNPACKED_SHARE = 4
_OF_CRASHKERNEL = ("no-crashkernel", "crashkernel-")
_PLAIN_TOLD_MAX = 3

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
"""Names in /proc/sys/kernel that decide what happens at a crash."""


@dataclass(frozen=True, slots=True)
class Target:
    """A directory in which dumps are saved."""

    path: str
    exists: bool
    free_bytes: int | None = None
    total_bytes: int | None = None
    distrust: str | None = None
    """Why others can replace what is in it."""


@dataclass(frozen=True, slots=True)
class KdumpFacts:
    """The values that were read; None if a value could not be read."""

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
    """Those of kdump-tools, kdump-utils and suse-kdump whose program is installed."""
    targets: tuple[Target, ...] = ()
    apport_cleans: bool = False
    """Apport's daily job is installed, which deletes dumps older than a week."""
    pstore: str | None = None
    """The backend of pstore; None: there is none."""
    fadump: bool | None = None
    """POWER's firmware-assisted dump is registered; None: this kernel does not have it."""
    initrd_bytes: int | None = None
    """Compressed size of the capture kernel's initramfs."""
    dump_bytes: int | None = None
    """Size of the largest of the newest dumps on this host."""
    compressions: frozenset[str] | None = None
    """Ways in which this host's makedumpfile can compress pages, beside zlib; None: not known."""
    plain_dumps: tuple[str, ...] = ()
    """Dumps that lie directly in a target, without a directory of their own."""
    denied: tuple[str, ...] = ()
    """Targets to which crashd.service may not write: it can delete nothing there."""
    problems: tuple[str, ...] = ()
    """Files that could not be read, a line each."""

    @property
    def tool_count(self) -> int | None:
        """Number of dumps that the installed tool is set to keep; None: no tool is set to."""
        counts = [c for c in (self.tools, self.sysconfig) if c is not None]
        known = [c.max_dumps for c in counts if c.max_dumps]
        return known[0] if known else None

    @property
    def armed(self) -> bool:
        """Whether something takes over at a panic."""
        return bool(self.loaded or self.fadump)

    @property
    def dump_level(self) -> int:
        """How much dumps leave out, as makedumpfile counts it: the lowest level of the makers."""
        levels = [31]
        if self.tools is not None and self.is_used("kdump-tools"):
            levels.append(31 if self.tools.arguments is None else dump_level(self.tools.arguments))
        if self.conf is not None and self.is_used("kdump-utils"):
            words = tuple(self.conf.options.get("core_collector", "").split())
            copies = bool(words) and words[0].rpartition("/")[2] in COPIERS
            levels.append(0 if copies else dump_level(words) if words else 31)
        if self.sysconfig is not None and self.is_used("suse-kdump"):
            level = self.sysconfig.dump_level
            levels.append(31 if level is None else level)
        return min(levels)

    def is_used(self, tool: str) -> bool:
        """Return whether a maker's settings count; if none is installed, all do."""
        return not self.installed or tool in self.installed


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict."""

    ready: bool
    """No finding is a fault."""
    findings: tuple[ConfFinding, ...]
    """The worst first."""
    crashkernel_bytes: int
    needed_bytes: int
    """The estimated size of a dump."""


_ORDER = {Severity.FAULT: 0, Severity.WARNING: 1, Severity.NOTICE: 2}
_START = {
    "kdump-tools": "systemctl enable --now kdump-tools, then kdump-config show",
    "kdump-utils": "systemctl enable --now kdump, then kdumpctl status",
    "suse-kdump": "systemctl enable --now kdump, then kdumptool commandline -u",
}


def dump_paths(facts: KdumpFacts) -> tuple[str, ...]:
    """Return the directories in which dumps are saved, by the makers' own settings."""
    paths = [DEFAULT_PATH]
    for conf in (facts.tools, facts.conf, facts.sysconfig):
        directory = conf.directory if conf is not None else None
        if directory and directory.startswith("/") and ".." not in directory.split("/"):
            paths.append(directory.rstrip("/") or "/")
    return tuple(dict.fromkeys(path for path in paths if path != "/"))


def assess(facts: KdumpFacts) -> Readiness:
    """Judge what the next kernel crash would leave behind."""
    needed = _needed_bytes(facts)
    findings = [
        *_of_the_load(facts),
        *_of_the_reserve(facts),
        *_of_the_makers(facts),
        *_of_the_targets(facts, needed),
        *_of_others(facts),
    ]
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    ready = all(finding.severity is not Severity.FAULT for finding in findings)
    return Readiness(ready, tuple(findings), facts.reserved_bytes or 0, needed)


def _needed_bytes(facts: KdumpFacts) -> int:
    """Estimate the size of the next dump. If the level keeps free pages, it is that of the memory.
    Otherwise existing dumps are the best guide, because versions of makedumpfile and of the kernel
    differ by more than twice.
    """
    level = facts.dump_level
    if not level & _FREE_PAGES:
        return max(DUMP_MIN_BYTES, facts.ram_bytes)
    if facts.dump_bytes is not None:
        return max(DUMP_MIN_BYTES, min(facts.ram_bytes, facts.dump_bytes * 3 // 2))
    share = DUMP_SHARE if level & _CACHE_AND_USER == _CACHE_AND_USER else 2
    return max(DUMP_MIN_BYTES, facts.ram_bytes // share)


def _of_the_reserve(facts: KdumpFacts) -> list[ConfFinding]:
    """Judge the capture kernel's memory."""
    crashkernel = parse_crashkernel(facts.cmdline)
    panic_on_oops = facts.sysctls.get("panic_on_oops")
    found = list(find_kernel_traps(crashkernel, facts.reserved_bytes, panic_on_oops))
    if facts.fadump is not None and facts.fadump:
        # The firmware keeps the memory, so crashkernel= does not matter.
        return [finding for finding in found if not finding.code.startswith(_OF_CRASHKERNEL)]
    reserved = facts.reserved_bytes or 0
    if reserved < RESERVED_MIN_BYTES:
        return found
    hint = "raise crashkernel=, and try with a panic"
    wanted = next((size for ram, size in _WANTED_BY_RAM if facts.ram_bytes >= ram), 0)
    if reserved < wanted:
        text = (
            f"{reserved >> 20} MiB are reserved for the capture kernel: a machine with "
            f"{format_size(facts.ram_bytes)} of memory wants {wanted >> 20} MiB or more"
        )
        found.append(ConfFinding("crashkernel-small", Severity.WARNING, text, hint))
    elif facts.initrd_bytes is not None and reserved < _with_initrd(facts.initrd_bytes):
        text = (
            f"{reserved >> 20} MiB are reserved for the capture kernel, its initramfs of "
            f"{format_size(facts.initrd_bytes)} takes several times that when it is unpacked: "
            f"about {_with_initrd(facts.initrd_bytes) >> 20} MiB are needed"
        )
        hint = "raise crashkernel=, or make the initramfs smaller (MODULES=dep, dracut --hostonly)"
        found.append(ConfFinding("initramfs-large", Severity.WARNING, text, hint))
    return found


def _with_initrd(size_bytes: int) -> int:
    """Return the memory that a capture kernel needs with an initramfs of this compressed size: that
    and its unpacked size. A 6 MB one was seen to hang with 96 MiB, and to work with 128 MiB.
    """
    return _CAPTURE_KERNEL_BYTES + _UNPACKED_SHARE * size_bytes


def _of_the_load(facts: KdumpFacts) -> list[ConfFinding]:
    if facts.armed:
        return []
    if facts.fadump is False and b"fadump=on" in facts.cmdline.split():
        text = "fadump=on is given, but no dump is registered with the firmware"
        hint = "echo 1 > /sys/kernel/fadump/registered, then kdumpctl status"
        return [ConfFinding("fadump-not-registered", Severity.FAULT, text, hint)]
    if not facts.installed:
        text = "no tool that saves kernel dumps is installed"
        hint = "apt-get install kdump-tools (Debian), dnf install kdump-utils (Fedora, RHEL)"
        return [ConfFinding("no-tool", Severity.FAULT, text, hint)]
    if facts.loaded is None:
        text = "this kernel cannot load a capture kernel (CONFIG_KEXEC, CONFIG_CRASH_DUMP)"
        return [ConfFinding("no-kexec", Severity.FAULT, text)]
    text = "no capture kernel is loaded: a crash leaves nothing behind"
    return [ConfFinding("not-loaded", Severity.FAULT, text, _START[facts.installed[0]])]


def _of_the_makers(facts: KdumpFacts) -> list[ConfFinding]:
    """Return the traps in the files of the installed makers."""
    found: list[ConfFinding] = []
    confs = (
        ("kdump-tools", facts.tools),
        ("kdump-utils", facts.conf),
        ("suse-kdump", facts.sysconfig),
    )
    for name, conf in confs:
        if conf is None:
            continue
        used = facts.is_used(name)
        found += [
            finding
            for finding in conf.findings
            if (used or finding.severity is Severity.NOTICE) and not _is_refuted(finding, facts)
        ]
    found += [
        ConfFinding("unreadable", Severity.WARNING, problem, "make it root's, and readable")
        for problem in facts.problems
    ]
    return found


def _is_refuted(finding: ConfFinding, facts: KdumpFacts) -> bool:
    """Return whether this host's makedumpfile can do what a finding says it cannot."""
    known = facts.compressions or frozenset()
    return finding.code == "compression-ignored" and any(f"({c})" in finding.text for c in known)


def _of_the_targets(facts: KdumpFacts, needed: int) -> list[ConfFinding]:
    """Judge the directories in which dumps are saved: room, trust, and crashd's access to them."""
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
            found.append(ConfFinding("no-space", severity, text, hint))
        if target.distrust is not None:
            text = f"{target.path} {target.distrust}: dumps there can be replaced by others"
            hint = f"chown root {target.path}; chmod go-w {target.path}"
            found.append(ConfFinding("target-open", Severity.WARNING, text, hint))
    for path in facts.denied:
        text = (
            f"crashd.service may not write to {path}: retention deletes nothing there "
            f"(ProtectSystem=strict)"
        )
        found.append(ConfFinding("deletion-denied", Severity.WARNING, text, ALLOW_HINT))
    for path in facts.plain_dumps[:_PLAIN_TOLD_MAX]:
        text = (
            f"{path} is a kernel dump in no directory of its own: crashd neither lists nor "
            f"explains nor deletes it"
        )
        hint = f"move it to {path.rpartition('/')[0]}/HOST-{'$(date +%F-%T)'}/vmcore"
        found.append(ConfFinding("plain-dump", Severity.NOTICE, text, hint))
    if not any(target.exists for target in facts.targets) and facts.targets:
        text = f"{facts.targets[0].path} does not exist yet: the first dump makes it"
        found.append(ConfFinding("no-target", Severity.NOTICE, text))
    return found


def _of_others(facts: KdumpFacts) -> list[ConfFinding]:
    found = []
    if facts.apport_cleans:
        text = (
            "Apport's daily job deletes kernel dumps older than 7 days, whatever crashd is set to"
        )
        hint = "copy what you need, or remove /etc/cron.daily/apport"
        found.append(ConfFinding("other-cleaner", Severity.NOTICE, text, hint))
    if facts.sysctls.get("panic") == 0 and not facts.armed:
        text = "kernel.panic is 0: without a capture kernel the machine halts instead of rebooting"
        found.append(ConfFinding("panic-halts", Severity.WARNING, text, "set kernel.panic=10"))
    if not facts.armed and facts.pstore is not None:
        text = f"pstore ({facts.pstore}) keeps the end of the log of a crash; crashd reads it"
        found.append(ConfFinding("pstore", Severity.NOTICE, text))
    return found
