"""What a kernel's vmlinux adds to the record of its dump: stacks with lines, locals, CPUs' tasks.

Title and signature come from the log, with or without a vmlinux: the same bug keeps its name on
hosts that have no debug information. Pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from crashd.domain.crash.model import Crash

THREADS_MAX: Final = 4096
"""At most this many CPUs in a record."""
REASON_MAX: Final = 500
DONE, NONE, FAILED = "done", "none", "failed"


@dataclass(frozen=True, slots=True)
class Local:
    """A local variable or parameter, as text."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class KernelFrame:
    """One call on a kernel stack; the callee comes first."""

    function: str | None
    module: str | None
    symbol_offset: int | None
    file: str | None
    line: int | None
    inline: bool
    pc: int
    locals: tuple[Local, ...] = ()


@dataclass(frozen=True, slots=True)
class CpuTask:
    """The task that a CPU was running."""

    cpu: int
    tid: int
    comm: str
    pc: int | None
    function: str | None


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What the sealed worker found in a dump with its vmlinux."""

    tid: int | None
    comm: str | None
    frames: tuple[KernelFrame, ...]
    cut: bool
    cpus: tuple[CpuTask, ...]
    problems: tuple[str, ...]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Symbols:
    """How far the search for a dump's symbols got."""

    state: str
    """`done`, `none` if no vmlinux was found, `failed` if it could not be used."""
    time: float
    """When this was found; seconds since the epoch."""
    vmlinux: str | None = None
    stamp: tuple[int, ...] | None = None
    """Stamp of the vmlinux: another vmlinux may do better."""
    package: str | None = None
    """The package to install."""
    reason: str | None = None
    facts: KernelFacts | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


def modules_without_lines(facts: KernelFacts) -> set[str]:
    """Return the modules on the stack whose files were not used."""
    return {frame.module for frame in facts.frames if frame.module and frame.file is None} - {
        "kernel"
    }


def modules_in_log(frames: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the modules that a log's own stack names."""
    found = (frame.get("module") for frame in frames)
    return [name for name in dict.fromkeys(found) if isinstance(name, str) and name != "kernel"]


def add_symbols(crash: Crash, symbols: Symbols, build_id: str | None) -> Crash:
    """Put what a vmlinux showed into a record; only its frames and threads change.

    What an earlier vmlinux showed stays if this search has no result.
    """
    facts, old = symbols.facts, symbols_of(crash.kernel)
    if old is not None and old.get("state") == DONE and symbols.state != DONE:
        kept = symbols.reason or "there is no vmlinux any more"
        said = {**old, "time": symbols.time, "kept": kept[:REASON_MAX]}
        return replace(crash, kernel={**(crash.kernel or {}), "symbols": said})
    said = {
        "state": symbols.state,
        "time": symbols.time,
        "build_id": build_id,
        "vmlinux": symbols.vmlinux,
        "stamp": None if symbols.stamp is None else list(symbols.stamp),
        "package": symbols.package,
        "reason": None if symbols.reason is None else symbols.reason[:REASON_MAX],
        "seconds": symbols.seconds,
        "cpu_seconds": symbols.cpu_seconds,
        "peak_bytes": symbols.peak_bytes,
        "warnings": list(facts.problems) if facts is not None else [],
    }
    crash = replace(crash, kernel={**(crash.kernel or {}), "symbols": said})
    if facts is None:
        return crash
    return replace(
        crash,
        frames=tuple(map(_frame, facts.frames)) or crash.frames,
        threads=tuple(_threads(facts)),
    )


def keep_symbols(crash: Crash, before: Crash | None) -> Crash:
    """Keep in a new record what an earlier look found with a vmlinux, which may be gone now.

    Only if the dump is the same: its directory, and the kernel's build-id.
    """
    old = symbols_of(before.kernel) if before is not None else None
    if before is None or old is None or crash.kernel is None:
        return crash
    was = before.kernel or {}
    if any(was.get(key) != crash.kernel.get(key) for key in ("inode", "build_id", "dump")):
        return crash
    if old.get("state") != DONE and was.get("changed_ns") != crash.kernel.get("changed_ns"):
        return crash  # that attempt failed, and the dump has changed since
    crash = replace(crash, kernel={**crash.kernel, "symbols": dict(old)})
    if old.get("state") != DONE:
        return crash
    return replace(crash, frames=before.frames or crash.frames, threads=before.threads)


def symbols_of(kernel: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a record says about its symbols; None if they were never searched for."""
    found = (kernel or {}).get("symbols")
    return found if isinstance(found, dict) else None


def _frame(frame: KernelFrame) -> dict[str, Any]:
    return {
        "function": frame.function,
        "module": frame.module or "kernel",
        "symbol_offset": frame.symbol_offset,
        "file": frame.file,
        "line": frame.line,
        "inline": frame.inline,
        "pc": hex(frame.pc),
        "locals": [{"name": local.name, "value": local.value} for local in frame.locals],
        "kind": "kernel",
    }


def _threads(facts: KernelFacts) -> Iterable[dict[str, Any]]:
    """Yield the CPUs' tasks, the one that panicked first."""
    crashed = next((cpu for cpu in facts.cpus if cpu.tid == facts.tid and facts.tid), None)
    if crashed is None and facts.tid is not None:
        yield {"tid": facts.tid, "name": facts.comm, "pc": _first_pc(facts), "crashed": True}
    for cpu in sorted(facts.cpus[:THREADS_MAX], key=lambda cpu: (cpu is not crashed, cpu.cpu)):
        yield {
            "tid": cpu.tid,
            "name": cpu.comm,
            "pc": None if cpu.pc is None else hex(cpu.pc),
            "crashed": cpu is crashed,
            "cpu": cpu.cpu,
            "function": cpu.function,
        }


def _first_pc(facts: KernelFacts) -> str | None:
    return hex(facts.frames[0].pc) if facts.frames else None
