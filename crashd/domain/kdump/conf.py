"""How the tools that make kernel dumps are configured, and the traps in it.

    /etc/default/kdump-tools   shell, sourced by kdump-config (dash)      Debian, Ubuntu, SONiC
    /etc/kdump.conf            `option value` lines                       RHEL, Fedora
    /etc/sysconfig/kdump       shell, sourced by bash                     SUSE (RHEL: other keys)

Each file is read as its tool reads it: an empty variable is unset, the last line wins. A value that
only a shell could compute is None, and a finding says so.

Source: kdump-config of kdump-tools 1.8.1; kdump-lib-initramfs.sh and kdump.conf(5) of kdump-utils;
kdump-read-config.sh and kdump(5) of SUSE's kdump 2. The traps: TESTBED.md, from real panics.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from crashd.domain.kdump.crashkernel import CrashKernel
from crashd.domain.kdump.shellconf import ShellVariables, parse_shell
from crashd.errors import FormatError

DEFAULT_PATH: Final = "/var/crash"
CONF_MAX: Final = 256 * 1024
CONF_LINES_MAX: Final = 4096
RESERVED_MIN_BYTES: Final = 128 * 2**20
"""96M was seen to hang the capture kernel of a small virtual machine, 128M to work."""

COPIERS: Final = frozenset({"cp", "scp", "dd"})
"""Core collectors that leave no pages out."""

_TARGETS = frozenset({"raw", "nfs", "ssh", "ext2", "ext3", "ext4", "xfs", "btrfs", "minix"})
_TARGETS |= {"virtiofs", "nfs4", "net"}
_KDUMP_TOOLS_COMPRESSIONS = frozenset({"", "bzip2", "gzip", "lz4", "xz"})
_OPTION_LINE = re.compile(r"(\S+)\s*(.*)", re.DOTALL)
_UNSUPPORTED_FLAGS = {"-p": "snappy", "-z": "zstd"}


class Severity(StrEnum):
    """How much a finding matters at the next panic."""

    FAULT = "fault"
    """The panic would leave no memory image, or nothing at all."""
    WARNING = "warning"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class ConfFinding:
    """One trap in the setup of kernel dumps."""

    code: str
    """Stable, for scripts: lower case with dashes."""
    severity: Severity
    text: str
    hint: str = ""
    """What the administrator can do about it."""


@dataclass(frozen=True, slots=True)
class KdumpTools:
    """/etc/default/kdump-tools; None where only a shell could compute the value."""

    enabled: bool | None = None
    directory: str | None = DEFAULT_PATH
    max_dumps: int | None = 0
    """KDUMP_NUM_DUMPS; 0 keeps all."""
    saves_log: bool | None = True
    compression: str | None = ""
    arguments: tuple[str, ...] | None = ("-F", "-c", "-d", "31")
    """Arguments of makedumpfile."""
    remote: tuple[str, ...] = ()
    """Those of NFS, SSH and FTP that are set: dumps then (also) go to another host."""
    problems: tuple[str, ...] = ()
    findings: tuple[ConfFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class KdumpConf:
    """/etc/kdump.conf."""

    options: Mapping[str, str] = field(default_factory=dict)
    directory: str | None = DEFAULT_PATH
    """On this host's own file systems; None: the dumps go elsewhere."""
    target: tuple[str, str] | None = None
    """Type and place: nfs, ssh, raw, or a file system that contains `path`."""
    findings: tuple[ConfFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class SysconfigKdump:
    """/etc/sysconfig/kdump of SUSE; RHEL's has none of these keys."""

    directory: str | None = None
    """None: not set there, or on another host."""
    max_dumps: int | None = 0
    """KDUMP_KEEP_OLD_DUMPS; 0 keeps all."""
    dump_format: str = ""
    dump_level: int | None = 31
    """KDUMP_DUMPLEVEL, a dump level of makedumpfile."""
    remote: str = ""
    """The protocol, unless it is a file."""
    problems: tuple[str, ...] = ()
    findings: tuple[ConfFinding, ...] = ()


# ---- kdump-tools ----


def parse_kdump_tools(raw: bytes) -> KdumpTools:
    """Parse /etc/default/kdump-tools.

    Raises:
        FormatError: it is too long, or not text.

    """
    shell = parse_shell(raw)
    use = shell.get("USE_KDUMP", "0")
    max_dumps, problem = _shell_number(shell.get("KDUMP_NUM_DUMPS", "0"))
    arguments = shell.get("MAKEDUMP_ARGS", "-F -c -d 31")
    saves_log = shell.get("KDUMP_DUMP_DMESG", "1")
    conf = KdumpTools(
        enabled=None if use is None else use != "0",
        directory=shell.get("KDUMP_COREDIR", DEFAULT_PATH),
        max_dumps=max_dumps,
        saves_log=None if saves_log is None else _shell_number(saves_log)[0] == 1,
        compression=shell.get("KDUMP_COMPRESSION", ""),
        arguments=None if arguments is None else tuple(arguments.split()),
        remote=tuple(n for n in ("NFS", "SSH", "FTP") if shell.values.get(n) or n in shell.unknown),
        problems=shell.problems,
    )
    findings = [*_tools_findings(conf), *_unknown_findings(shell, "/etc/default/kdump-tools")]
    if problem:
        text = "KDUMP_NUM_DUMPS is no number: kdump-tools keeps all dumps"
        findings.append(ConfFinding("num-dumps-invalid", Severity.WARNING, text))
    return replace(conf, findings=tuple(findings))


def _tools_findings(conf: KdumpTools) -> list[ConfFinding]:
    """Find the traps in the settings of kdump-tools."""
    found: list[ConfFinding] = []
    if conf.enabled is False:
        text = "USE_KDUMP is not 1: kdump-tools loads no capture kernel"
        found.append(ConfFinding("kdump-off", Severity.FAULT, text, "set USE_KDUMP=1"))
    if conf.arguments is not None:
        found += _collector_findings(conf.arguments, "MAKEDUMP_ARGS")
        for flag, name in _UNSUPPORTED_FLAGS.items():
            if flag in conf.arguments:
                text = f"MAKEDUMP_ARGS has {flag} ({name}): Debian's makedumpfile stores pages raw"
                found.append(
                    ConfFinding("compression-ignored", Severity.NOTICE, text, "use -c or -l")
                )
    if conf.saves_log is False:
        text = "KDUMP_DUMP_DMESG is not 1: no log is saved beside the dump"
        found.append(ConfFinding("no-log", Severity.WARNING, text, "set KDUMP_DUMP_DMESG=1"))
    if conf.compression is not None and conf.compression not in _KDUMP_TOOLS_COMPRESSIONS:
        text = "KDUMP_COMPRESSION is not bzip2, gzip, lz4 or xz: dumps are not compressed"
        found.append(ConfFinding("compression-unknown", Severity.NOTICE, text))
    if conf.max_dumps and "NFS" not in conf.remote:
        text = (
            f"kdump-tools itself keeps {conf.max_dumps} dumps: the capture kernel removes the "
            f"oldest entries whose names begin with 2, whatever they are"
        )
        found.append(ConfFinding("other-cleaner", Severity.NOTICE, text))
    if conf.remote:
        text = f"dumps are sent to another host ({', '.join(conf.remote)})"
        found.append(ConfFinding("remote-target", Severity.NOTICE, text))
    return found


def dump_level(arguments: tuple[str, ...]) -> int:
    """Return the dump level in makedumpfile's arguments. The last `-d` counts, and of `-d 31,17`
    the first number. Without any, all memory is dumped.
    """
    level = 0
    for number, word in enumerate(arguments):
        found = re.fullmatch(r"-[A-Za-z]*?d(.*)", word)
        if found is None:
            continue
        value = found[1] or "".join(arguments[number + 1 : number + 2])
        digits = re.match(r"[0-9]{1,2}", value)
        level = int(digits[0]) if digits is not None else level
    return level


def _collector_findings(arguments: tuple[str, ...], where: str) -> list[ConfFinding]:
    """Find the traps in the arguments of makedumpfile."""
    found = []
    if "--dump-dmesg" in arguments:
        text = f"{where} has --dump-dmesg: the dump is a copy of the log, no memory image"
        found.append(ConfFinding("dump-dmesg", Severity.FAULT, text, f"take it out of {where}"))
    elif not any(re.match(r"-[A-Za-z]*d", a) for a in arguments):
        text = f"{where} has no -d: all memory is dumped, free pages and page cache too"
        found.append(ConfFinding("dump-level", Severity.NOTICE, text, "add -d 31"))
    return found


# ---- kdump.conf ----


def parse_kdump_conf(raw: bytes) -> KdumpConf:
    """Parse /etc/kdump.conf: `#` begins a comment, and the last of each option counts.

    Raises:
        FormatError: it is too long, or not text.

    """
    if len(raw) > CONF_MAX or b"\0" in raw:
        raise FormatError(f"kdump.conf is not a text of at most {CONF_MAX} bytes")
    options: dict[str, str] = {}
    target: tuple[str, str] | None = None
    text = raw.decode("utf-8", "surrogateescape")
    for line in text.split("\n", CONF_LINES_MAX)[:CONF_LINES_MAX]:
        found = _OPTION_LINE.fullmatch(line.partition("#")[0].strip())
        if found is None:
            continue
        options[found[1]] = found[2]
        if found[1] in _TARGETS:
            target = found[1], found[2]
    path = options.get("path") or DEFAULT_PATH
    findings = []
    collector = tuple(options.get("core_collector", "").split())
    program = collector[0].rpartition("/")[2] if collector else ""
    if program == "makedumpfile":
        findings += _collector_findings(collector, "core_collector")
    elif program in COPIERS:
        told = f"core_collector is {program}: all memory is copied, free pages and page cache too"
        hint = "set core_collector to: makedumpfile -l --message-level 7 -d 31"
        findings.append(ConfFinding("copies-all", Severity.WARNING, told, hint))
    if target is not None:
        told = f"dumps go to the {target[0]} target, `path` is below that"
        findings.append(ConfFinding("other-target", Severity.NOTICE, told))
    return KdumpConf(options, None if target else path, target, tuple(findings))


# ---- sysconfig ----


def parse_sysconfig(raw: bytes) -> SysconfigKdump:
    """Parse /etc/sysconfig/kdump.

    Raises:
        FormatError: it is too long, or not text.

    """
    shell = parse_shell(raw)
    where = shell.get("KDUMP_SAVEDIR", "") or ""
    protocol, separator, rest = where.partition("://")
    protocol = protocol.lower() if separator else ("file" if where.startswith("/") else "")
    directory = (rest if separator else where) if protocol == "file" else None
    keep = shell.get("KDUMP_KEEP_OLD_DUMPS", "0")
    form = shell.get("KDUMP_DUMPFORMAT", "") or ""
    findings = _unknown_findings(shell, "/etc/sysconfig/kdump")
    if form.lower() == "none":
        text = "KDUMP_DUMPFORMAT is none: no memory image is saved"
        hint = "set KDUMP_DUMPFORMAT=compressed"
        findings.append(ConfFinding("dump-format-none", Severity.FAULT, text, hint))
    # SUSE's kdump ignores a value that is not a number, including -1.
    max_dumps = None if keep is None else int(keep) if re.fullmatch(r"[0-9]{1,9}", keep) else 0
    if max_dumps and directory:
        text = f"SUSE's kdump itself keeps {max_dumps} dumps: the capture kernel removes older ones"
        findings.append(ConfFinding("other-cleaner", Severity.NOTICE, text))
    remote = protocol if protocol not in ("", "file") else ""
    if remote:
        text = f"dumps are sent to another host ({remote})"
        findings.append(ConfFinding("remote-target", Severity.NOTICE, text))
    level, is_text = _shell_number(shell.get("KDUMP_DUMPLEVEL", "31"))
    level = 31 if is_text else level
    problems = shell.problems
    return SysconfigKdump(directory, max_dumps, form, level, remote, problems, tuple(findings))


# ---- the kernel ----


def find_kernel_traps(
    crashkernel: CrashKernel | None, reserved_bytes: int | None, panic_on_oops: int | None
) -> tuple[ConfFinding, ...]:
    """Find settings of the running kernel that keep a crash from leaving a dump.

    `reserved_bytes` is /sys/kernel/kexec_crash_size; None means that a value could not be read.
    """
    found = []
    if crashkernel is None:
        text = "there is no crashkernel= on the kernel's command line: no memory is reserved"
        hint = "add crashkernel=256M to the boot loader's configuration and reboot"
        found.append(ConfFinding("no-crashkernel", Severity.FAULT, text, hint))
    elif reserved_bytes == 0:
        why = "; ".join(crashkernel.problems) or "the kernel could not reserve it"
        text = f"crashkernel= is given, but no memory is reserved: {why}"
        found.append(ConfFinding("crashkernel-refused", Severity.FAULT, text))
    if reserved_bytes and reserved_bytes < RESERVED_MIN_BYTES:
        text = (
            f"{reserved_bytes // 2**20} MiB are reserved for the capture kernel: with less than "
            f"{RESERVED_MIN_BYTES // 2**20} MiB it may run out of memory and hang"
        )
        hint = "raise crashkernel=, and try with a panic"
        found.append(ConfFinding("crashkernel-small", Severity.WARNING, text, hint))
    if panic_on_oops == 0:
        text = "kernel.panic_on_oops is 0: an oops in process context leaves no dump"
        hint = "set kernel.panic_on_oops=1"
        found.append(ConfFinding("panic-on-oops", Severity.WARNING, text, hint))
    return tuple(found)


# ---- what shells do ----


def _shell_number(text: str | None) -> tuple[int | None, bool]:
    """Read an integer as `[ … -gt 0 ]` does; also return whether it is not one: the test fails."""
    if text is None:
        return None, False
    number = text.strip(" \t\n")
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", number):
        return 0, True
    return max(0, int(number)), False


_RELEVANT: tuple[str, ...]
_RELEVANT = ("USE_KDUMP", "KDUMP_COREDIR", "KDUMP_NUM_DUMPS", "MAKEDUMP_ARGS", "KDUMP_DUMP_DMESG")
_RELEVANT += ("KDUMP_COMPRESSION", "KDUMP_SAVEDIR", "KDUMP_KEEP_OLD_DUMPS", "KDUMP_DUMPFORMAT")


def _unknown_findings(shell: ShellVariables, path: str) -> list[ConfFinding]:
    names = [name for name in _RELEVANT if name in shell.unknown]
    if not names and shell.whole:
        return []
    what = ", ".join(names) or "variables"
    text = f"{path} computes {what} or hides them: crashd runs no shell and cannot tell"
    hint = "assign a plain value, or set crashd's own option"
    return [ConfFinding("shell-computed", Severity.WARNING, text, hint)]
