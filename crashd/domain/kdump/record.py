"""The record of a kernel crash: builds one Crash from a look at its dump's directory or its log.

Each look builds the record again. It keeps its id, its pin, the time it was first seen, and what a
vmlinux showed; so a dump whose log arrives later gets its title then. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from crashd.domain.crash.model import (
    BOOT_UNKNOWN,
    Capture,
    Core,
    Crash,
    Disposition,
    Kind,
    Mode,
    State,
    build_id_text,
)
from crashd.domain.kdump.directory import DumpDirectory
from crashd.domain.kdump.vmcore import Completeness, DumpVerdict
from crashd.domain.kernellog.kinds import PanicKind
from crashd.domain.text import printable

if TYPE_CHECKING:
    from crashd.domain.kernellog.analyse import LogAnalysis

LOG_LINES_MAX: Final = 4000
LOG_BYTES_MAX: Final = 512 * 1024
"""The record keeps at most this much of the end of a log."""
LIST_MAX: Final = 200
SAME_EVENT_NS: Final = 10 * 60 * 10**9
"""Reports with one signature within this time are one crash, whatever their source."""


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a look at a dump's directory."""

    root: str
    """Path of the directory that contains the dump's directory."""
    directory: DumpDirectory
    inode: int
    verdict: DumpVerdict | None
    """None: there is no file with the name of a dump."""
    log: bytes
    """The end of the log."""
    log_source: str
    """`file`, or `dump` if it was taken out of the dump, or why it could not be."""
    analysis: LogAnalysis | None
    growing: bool
    """It changed a moment ago, and is not known to be whole."""
    build_id: str | None = None
    """The vmlinux's, found in the memory of a dump whose head has none."""
    parts: tuple[bytes, ...] = ()
    """Files of a split dump, in the order of their page frames; empty if it is not split."""
    capture_troubles: tuple[str, ...] = ()
    """What the capture kernel's own log says about its failure to save the dump."""
    log_pending: bool = False
    """There is no log, and none has been taken out of the dump yet."""
    try_again: bool = False
    """Another look may find what is still unknown about the dump."""


def token_of(root: str, name: bytes) -> str:
    """Return the permanent token of a dump's directory: the same directory is the same crash."""
    digest = hashlib.sha256(root.encode("utf-8", "surrogateescape") + b"\0" + name)
    return f"kdump-{digest.hexdigest()[:32]}"


def build_record(
    look: Look, before: Crash | None, *, hostname: bytes, random: int, seen_ns: int
) -> Crash:
    """Build the record of a dump's directory; `before` is the record of the previous look."""
    head = look.verdict.head if look.verdict is not None else None
    crashed_ns = head.crash_time_ns if head is not None else None
    time_ns = max(0, crashed_ns if crashed_ns is not None else look.directory.stamp_ns)
    state, reason = _judge(look)
    host = look.directory.host or (head.nodename if head is not None else "")
    first_ns = before.kernel.get("first_seen_ns") if before and before.kernel else None
    crash = Crash(
        id=before.id if before else build_id_text(time_ns, BOOT_UNKNOWN, 0, random),
        kind=Kind.KERNEL,
        state=state,
        time_ns=time_ns,
        boot_id=BOOT_UNKNOWN,
        hostname=host.encode("utf-8", "surrogateescape") if host else hostname,
        token=token_of(look.root, look.directory.name),
        capture=Capture(mode=Mode.KDUMP, disposition=_disposition(look), reason=reason),
        core=Core(
            size_bytes=look.directory.size_bytes,
            stored_bytes=look.directory.size_bytes,
            resident_bytes=look.directory.size_bytes,
            complete=state is State.COMPLETE,
        ),
        pinned=before.pinned if before else False,
        warnings=_warnings(look),
        log=split_log(look.log),
    )
    kernel = {
        **_of_dump(look),
        "first_seen_ns": first_ns if isinstance(first_ns, int) else seen_ns,
        "crash_time_source": "dump" if crashed_ns is not None else "directory name",
    }
    crash = replace(crash, kernel=kernel)
    if not look.log and before is not None and _has_words(before):
        from crashd.domain.kernellog.analyse import analyse  # most dumps have their own log

        words = "\n".join(before.log)
        source = str((before.kernel or {}).get("log_source"))
        return add_words(crash, before.log, analyse(words.encode()), source)
    return add_analysis(crash, look.analysis, bool(look.log))


def _judge(look: Look) -> tuple[State, str | None]:
    """Return how far saving the dump got, and why not further."""
    directory, verdict = look.directory, look.verdict
    if look.growing:
        return State.CAPTURING, None
    if verdict is None and directory.log is None:
        return (
            State.INCOMPLETE,
            "the directory is empty: the capture kernel did not get any further",
        )
    if verdict is None:
        return State.INCOMPLETE, "there is no memory image, only the log"
    name = printable(directory.dump or b"")
    if verdict.completeness is Completeness.COMPLETE:
        if verdict.sure:
            return State.COMPLETE, verdict.reason or None
        return State.INCOMPLETE, f"whether {name} is whole is not known: {verdict.reason}"
    return State.INCOMPLETE, f"{name}: {verdict.reason}"


def _disposition(look: Look) -> Disposition:
    usable = look.verdict is not None and look.verdict.head is not None
    return Disposition.FULL if usable or look.growing else Disposition.METADATA


def _warnings(look: Look) -> tuple[str, ...]:
    """List what the operator should know about the dump, apart from its state."""
    directory, told = look.directory, []
    if directory.world_readable:
        told.append("every user may read the dump, which is the kernel's memory")
    if directory.log_world_readable:
        told.append("every user may read the kernel's log that was saved")
    if directory.shared:
        told.append("a second crash in the same minute used the directory: its log is the first's")
    if directory.log_unfinished:
        told.append("the log was never finished")
    if not look.log and look.log_source not in ("file", "dump"):
        told.append(f"there is no log, and none could be taken out of the dump: {look.log_source}")
    if look.verdict is None or look.verdict.completeness is not Completeness.COMPLETE:
        name = printable(directory.capture_log or b"")
        told += [f"{name}: {line}" for line in look.capture_troubles]
    if directory.unknown:
        names = ", ".join(printable(name[:64]) for name in directory.unknown[:4])
        told.append(f"holds what no maker of dumps puts there: {names}")
    if look.verdict is not None and look.verdict.head is not None:
        told += look.verdict.head.problems[:8]
    return tuple(told)


def _of_dump(look: Look) -> dict[str, Any]:
    """Build the dump's own part of the record's `kernel`."""
    directory = look.directory
    verdict, head = look.verdict, look.verdict.head if look.verdict is not None else None
    said: dict[str, Any] = {
        "source": "kdump",
        "maker": directory.maker.value,
        "path": f"{look.root}/{directory.name.decode('ascii', 'backslashreplace')}",
        "inode": look.inode,
        "changed_ns": directory.changed_ns,
        "stamp": directory.stamp,
        "dump": _name(directory.dump),
        "dump_parts": [_name(name) for name in look.parts] or None,
        "log_file": _name(directory.log),
        "log_source": look.log_source if look.log else None,
        "log_pending": look.log_pending or None,
        "dump_state": _dump_state(verdict),
        "dump_sure": verdict.sure if verdict is not None else None,
        "world_readable": directory.world_readable or directory.log_world_readable,
    }
    if head is not None:
        said |= {
            "release": head.release or None,
            "version": head.version or None,
            "machine": head.machine or None,
            "crash_time": None if head.crash_time_ns is None else head.crash_time_ns // 10**9,
            "dump_level": head.dump_level,
            "format": head.format.value,
            "header_version": head.header_version,
            "flattened": head.flattened,
            "wrapped_by": head.wrapped_by.value if head.wrapped_by is not None else None,
            "compression": head.compression,
            "memory_bytes": head.memory_bytes,
            "build_id": head.build_id or look.build_id,
        }
    return said


DUMP_NOT_KNOWN: Final = "not known"
"""`dump_state` if nothing speaks against the dump, but its end could not be seen."""


def _dump_state(verdict: DumpVerdict | None) -> str | None:
    if verdict is None:
        return None
    if verdict.completeness is Completeness.COMPLETE and not verdict.sure:
        return DUMP_NOT_KNOWN
    return verdict.completeness.value


def _name(name: bytes | None) -> str | None:
    return None if name is None else printable(name)


def split_log(log: bytes) -> tuple[str, ...]:
    """Split a log into the last lines, which a record keeps."""
    lines = log[-LOG_BYTES_MAX:].decode("utf-8", "backslashreplace").splitlines()
    return tuple(printable(line) for line in lines[-LOG_LINES_MAX:])


def add_analysis(crash: Crash, analysis: LogAnalysis | None, has_log: bool) -> Crash:
    """Put what a log says into the record."""
    kernel = dict(crash.kernel or {})
    if analysis is None:
        why = "its log names no cause" if has_log else "there is no log"
        if crash.state is State.CAPTURING:
            why = "its dump is being written"
        return replace(crash, title=f"kernel crash: {why}", kernel=kernel)
    for key, value in _of_log(analysis).items():
        if kernel.get(key) is None:
            kernel[key] = value
    return replace(
        crash,
        kernel=kernel,
        title=printable(analysis.title),
        signature=analysis.signature,
        explanation=explain(analysis),
        pid=analysis.pid if analysis.pid is not None and 0 <= analysis.pid < 2**22 else None,
        comm=(analysis.comm or "").encode("utf-8", "surrogateescape"),
        frames=_frames(analysis),
        report=tuple(printable(line) for line in analysis.text.splitlines()[:LOG_LINES_MAX]),
    )


def _of_log(analysis: LogAnalysis) -> dict[str, Any]:
    return {
        "panic_kind": analysis.kind.value,
        "fatal": analysis.fatal,
        "panic": None if analysis.panic is None else printable(analysis.panic),
        "earlier": None if analysis.earlier is None else printable(analysis.earlier),
        "release": analysis.release,
        "function": analysis.function,
        "offset": analysis.offset,
        "module": analysis.module,
        "cpu": analysis.cpu,
        "taint": analysis.taint,
        "taint_words": list(analysis.taint_words),
        "modules": [printable(name) for name in analysis.modules[:LIST_MAX]],
        "hardware": None if analysis.hardware is None else printable(analysis.hardware),
    }


def _frames(analysis: LogAnalysis) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "function": printable(frame.function),
            "module": frame.module or "kernel",
            "symbol_offset": frame.offset,
            "reliable": frame.reliable,
            "kind": "kernel",
        }
        for frame in analysis.trace[:LIST_MAX]
    )


_WORDS: dict[PanicKind, str] = {
    PanicKind.SYSRQ: "somebody made the kernel crash through sysrq",
    PanicKind.OOM: "no memory was left, and the kernel is set to panic then",
    PanicKind.HUNG_TASK: "a task was blocked for too long, and the kernel is set to panic then",
    PanicKind.SOFT_LOCKUP: "a CPU did not leave kernel code for too long",
    PanicKind.HARD_LOCKUP: "a CPU did not even take interrupts",
    PanicKind.RCU_STALL: "a CPU or task held up RCU for too long",
    PanicKind.MCE: "the hardware reported an error",
}


def explain(analysis: LogAnalysis) -> str:
    """Return a line or two about what happened, where, and to which process."""
    parts = [_WORDS[analysis.kind]] if analysis.kind in _WORDS else []
    if analysis.function is not None:
        where = f"in {analysis.function}"
        where += f"+{analysis.offset}" if analysis.offset else ""
        where += f" of the module {analysis.module}" if analysis.module else ""
        parts.append(where)
    if analysis.comm:
        pid = f"[{analysis.pid}]" if analysis.pid is not None else ""
        cpu = f" on CPU {analysis.cpu}" if analysis.cpu is not None else ""
        parts.append(f"while running {analysis.comm}{pid}{cpu}")
    if not analysis.fatal:
        parts.append("the machine went on")
    text = ", ".join(parts)
    return printable(text[:1].upper() + text[1:]) + "." if text else ""


def add_words(crash: Crash, log: Sequence[str], analysis: LogAnalysis | None, source: str) -> Crash:
    """Give the record of a dump without a log a log that was found elsewhere."""
    kernel = {**(crash.kernel or {}), "log_source": source}
    return add_analysis(replace(crash, log=tuple(log), kernel=kernel), analysis, True)


def _has_words(crash: Crash | None) -> bool:
    source = (crash.kernel or {}).get("log_source") if crash is not None else None
    return isinstance(source, str) and source.startswith("pstore")


def survived(
    analysis: LogAnalysis | None,
    *,
    mode: Mode,
    time_ns: int,
    boot_id: str,
    hostname: bytes,
    token: str,
    log: Sequence[str],
    source: str,
    random: int,
) -> Crash:
    """Build the record of a crash that left only words: a live kernel's, or pstore's."""
    crash = Crash(
        id=build_id_text(time_ns, boot_id, 0, random),
        kind=Kind.KERNEL,
        state=State.METADATA_ONLY,
        time_ns=time_ns,
        boot_id=boot_id,
        hostname=hostname,
        token=token,
        capture=Capture(mode=mode, disposition=Disposition.METADATA),
        log=tuple(log)[-LOG_LINES_MAX:],
        kernel={"source": source},
    )
    return add_analysis(crash, analysis, True)
