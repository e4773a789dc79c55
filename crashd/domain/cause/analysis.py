"""What an analysis found: the facts that the sandboxed worker reports, and what they mean.

Every text and number here comes from a hostile core. crashd.analysisresult has bounded them and
made the texts printable.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, assert_never

SCHEMA = 1
"""Version of analysis.json."""


class AnalysisState(StrEnum):
    """The progress of an analysis, or its end."""

    PENDING = "pending"
    """In a notice that no longer waits for the analysis."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether the analysis ended."""
        match self:
            case AnalysisState.DONE | AnalysisState.FAILED:
                return True
            case AnalysisState.PENDING | AnalysisState.RUNNING:
                return False
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True)
class Frame:
    """One call on a stack; stacks list the callee first."""

    function: str | None
    """Demangled; None if there is no symbol."""
    module: str | None
    """Path of the executable or library; None if the address is in neither."""
    build_id: str | None
    offset: int | None
    """Distance of the program counter from the module's start."""
    pc: int | None
    symbol_offset: int | None = None
    file: str | None = None
    line: int | None = None
    inline: bool = False
    kind: str = "native"
    """`native`, or the interpreter's language: `python`."""


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """One thread and its stack."""

    tid: int
    crashed: bool
    frames: tuple[Frame, ...]
    cut: bool
    """Whether there are more frames, or the walk could not continue."""
    name: str | None = None
    end: str | None = None
    """Why the walk stopped before the stack's own end."""


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """An executable or library that was mapped."""

    name: str
    start: int
    end: int
    build_id: str | None
    deleted: bool
    problem: str | None
    """Why its file was not used."""
    debug_info: bool
    used: bool
    """Whether it is on any stack."""


@dataclass(frozen=True, slots=True)
class Access:
    """Memory that an instruction tried to touch."""

    mode: str
    """`read`, `write`, `read-write`."""
    address: int | None
    size: int
    displacement: int
    base: str | None
    base_value: int | None
    index: str | None


@dataclass(frozen=True, slots=True)
class Instruction:
    """The instruction at which the crashed thread stopped."""

    bytes: str
    text: str | None
    mnemonic: str | None
    access: tuple[Access, ...]
    target: int | None = None
    """The target of a call, jump or return through a register or memory."""


@dataclass(frozen=True, slots=True)
class SignalFacts:
    """The siginfo_t of the crash."""

    signal: int
    code: int
    address: int | None
    sender_pid: int | None
    sender_uid: int | None
    syscall: int | None = None
    syscall_name: str | None = None
    error_code: int | None = None
    """The processor's error code, from a signal's frame on x86 or from the kernel's log."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A handler caught the signal of Facts.siginfo; this is what happened next."""

    signal: int
    """The signal that then killed the process."""
    code: int
    frame: int
    """Index of the crashed thread's frame at which the interrupted code begins."""
    again: bool
    """Whether the handler raised the same signal again and returned."""


@dataclass(frozen=True, slots=True)
class Region:
    """What is mapped at an address."""

    address: int
    kind: str
    """`none`, `file`, `stack`, `guard`, `anonymous`, `vdso`."""
    perms: str
    name: str
    gap_bytes: int | None = None
    """Distance to the start of the next mapping above."""
    above: str | None = None
    """The kind of that mapping."""
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class PackageNote:
    """The package that the executable says it is from (.note.package)."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts found in a core."""

    machine: int
    bits: int
    threads: tuple[ThreadStack, ...]
    """The crashed one first."""
    modules: tuple[ModuleInfo, ...]
    registers: Mapping[str, int]
    instruction: Instruction | None
    siginfo: SignalFacts | None
    regions: Mapping[str, Region]
    """At `pc`, `sp`, `fault`, and `link`, from which a pointer in freed memory would come."""
    messages: Mapping[str, str]
    """Last words: `abort`, `glib`, `cxx_type`, `cxx_what`, `rust_panic`, `go_panic` …"""
    problems: tuple[str, ...]
    interpreted: tuple[ThreadStack, ...] = ()
    """The stacks of interpreted languages; each frame's `kind` names the language."""
    handled: Handled | None = None
    """Set if `siginfo`, `registers`, `instruction` and `regions` describe a signal that a handler
    caught first, not the signal that killed the process."""
    returned: bool = False
    """Whether a return, not a call or jump, led to the program counter, where there is no code."""
    thread_signal: int | None = None
    """The crashed thread's signal by its NT_PRSTATUS, for cores without siginfo (qemu, gdb)."""
    package: PackageNote | None = None

    @property
    def crashed(self) -> tuple[Frame, ...]:
        """The crashed thread's frames."""
        return self.threads[0].frames if self.threads else ()

    @property
    def signal(self) -> int | None:
        """The signal that killed the process."""
        if self.handled is not None:
            return self.handled.signal
        return self.siginfo.signal if self.siginfo is not None else self.thread_signal or None

    @property
    def blamed(self) -> tuple[Frame, ...]:
        """The crashed thread's frames without those of a signal handler."""
        return self.crashed[self.handled.frame :] if self.handled is not None else self.crashed

    @property
    def crashed_interpreted(self) -> tuple[Frame, ...]:
        """The interpreted frames of the crashed thread."""
        tid = self.threads[0].tid if self.threads else None
        return next((t.frames for t in self.interpreted if t.tid == tid), ())


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a process crashed."""

    kind: str
    """One of a closed set: `null-pointer`, `stack-overflow`, `assertion` …"""
    short: str
    """For the title: without addresses, pids and anything else that differs between runs."""
    text: str
    """One line for an operator."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """The whole result, as written to analysis.json."""

    state: AnalysisState
    reason: str | None = None
    """Why the analysis failed."""
    title: str | None = None
    signature: str | None = None
    explanation: str | None = None
    cause: str | None = None
    facts: Facts | None = None
    seconds: float = 0.0
    """Wall clock."""
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """Peak resident memory of the worker."""
    warnings: tuple[str, ...] = field(default=())


def analysis_to_json(analysis: Analysis) -> dict[str, Any]:
    """Build the object of analysis.json."""
    document = asdict(analysis)
    document["state"] = analysis.state.value
    return {"schema": SCHEMA, **document}


def knowledge(document: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Rank how much an analysis found, from the object of analysis.json: more is greater.

    A finished analysis ranks above a failed one. Then count, in this order: the modules whose files
    were found (frames are guessed without them), the modules on a stack that have debug
    information, and the crashed thread's frames that have a name, then those that have a line.
    """
    if document is None or document.get("state") != AnalysisState.DONE.value:
        return (0,)
    facts = document.get("facts") or {}
    modules, threads = facts.get("modules") or [], facts.get("threads") or []
    frames = threads[0]["frames"] if threads else []
    return (
        1,
        sum(module["problem"] is None for module in modules),
        sum(bool(module["used"] and module["debug_info"]) for module in modules),
        sum(frame["function"] is not None for frame in frames),
        sum(frame["line"] is not None for frame in frames),
    )
