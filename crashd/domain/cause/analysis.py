"""What an analysis found: the facts that the sandboxed worker reports, and what they mean.

Every text and number in here came out of a hostile core; crashd.analysisresult has bounded them and
made the texts printable.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, assert_never

SCHEMA = 1
"""Version of analysis.json."""

UNSEALED_STATUS = 69
"""Exit status of a worker that could not be confined, and so did nothing."""
PEAK_PREFIX = b"peak KiB: "
"""What the last line of its errors begins with: its resident memory at its most."""


class AnalysisState(StrEnum):
    """How far an analysis is, or how it ended."""

    PENDING = "pending"
    """Of a notice that does not wait for it any longer."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether it ended."""
        match self:
            case AnalysisState.DONE | AnalysisState.FAILED:
                return True
            case AnalysisState.PENDING | AnalysisState.RUNNING:
                return False
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True)
class Frame:
    """One call on a stack, the callee first."""

    function: str | None
    """Demangled; None where no symbol tells."""
    module: str | None
    """Path of the executable or library; None outside of all."""
    build_id: str | None
    offset: int | None
    """Of the program counter from the module's start."""
    pc: int | None
    symbol_offset: int | None = None
    file: str | None = None
    line: int | None = None
    inline: bool = False
    kind: str = "native"
    """`native`, or the interpreter's language: `python`."""


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """One thread, and its stack."""

    tid: int
    crashed: bool
    frames: tuple[Frame, ...]
    cut: bool
    """Whether there are more frames, or the stack could not be walked on."""
    name: str | None = None
    end: str | None = None
    """Why there are no more frames, where the stack did not come to its own end."""


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
    """Memory that an instruction was to touch."""

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
    """The instruction that the crashed thread was at."""

    bytes: str
    text: str | None
    mnemonic: str | None
    access: tuple[Access, ...]
    target: int | None = None
    """Where it goes, if it is a call, jump or return through a register or memory."""


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
    """The processor's own, as x86 has it in a signal's frame or the kernel in its log."""


@dataclass(frozen=True, slots=True)
class Handled:
    """That the signal of Facts.siginfo was caught by a handler, and what became of it."""

    signal: int
    """What killed the process then."""
    code: int
    frame: int
    """Which of the crashed thread's frames the interrupted code begins at."""
    again: bool
    """Whether the handler raised the same signal again, and returned."""


@dataclass(frozen=True, slots=True)
class Region:
    """What is mapped at an address."""

    address: int
    kind: str
    """`none`, `file`, `stack`, `guard`, `anonymous`, `vdso`."""
    perms: str
    name: str
    gap_bytes: int | None = None
    """To the start of the next mapping above."""
    above: str | None = None
    """The kind of that."""
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found in a core."""

    machine: int
    bits: int
    threads: tuple[ThreadStack, ...]
    """The crashed one first."""
    modules: tuple[ModuleInfo, ...]
    registers: Mapping[str, int]
    instruction: Instruction | None
    siginfo: SignalFacts | None
    regions: Mapping[str, Region]
    """At `pc`, `sp`, `fault`, and `link`: where a freed pointer would come from."""
    messages: Mapping[str, str]
    """Last words: `abort`, `glib`, `cxx_type`, `cxx_what`, `rust_panic`, `go_panic` …"""
    problems: tuple[str, ...]
    interpreted: tuple[ThreadStack, ...] = ()
    """The stacks of interpreted languages; each frame's `kind` names the language."""
    handled: Handled | None = None
    """Set where `siginfo`, `registers`, `instruction` and `regions` are those of a signal that was
    caught first, and not those of the one that killed the process."""

    @property
    def crashed(self) -> tuple[Frame, ...]:
        """The crashed thread's frames."""
        return self.threads[0].frames if self.threads else ()

    @property
    def signal(self) -> int | None:
        """The signal that killed the process."""
        if self.handled is not None:
            return self.handled.signal
        return self.siginfo.signal if self.siginfo is not None else None

    @property
    def blamed(self) -> tuple[Frame, ...]:
        """The crashed thread's frames without those of a signal's handler."""
        return self.crashed[self.handled.frame :] if self.handled is not None else self.crashed

    @property
    def crashed_interpreted(self) -> tuple[Frame, ...]:
        """The interpreted frames of the crashed thread."""
        tid = self.threads[0].tid if self.threads else None
        return next((t.frames for t in self.interpreted if t.tid == tid), ())


@dataclass(frozen=True, slots=True)
class Cause:
    """Why it crashed."""

    kind: str
    """One of a closed set: `null-pointer`, `stack-overflow`, `assertion` …"""
    short: str
    """For the title: no address, no pid, nothing that another run has otherwise."""
    text: str
    """One line for an operator."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """The whole result, as analysis.json has it."""

    state: AnalysisState
    reason: str | None = None
    """Why it failed."""
    title: str | None = None
    signature: str | None = None
    explanation: str | None = None
    cause: str | None = None
    facts: Facts | None = None
    seconds: float = 0.0
    """Wall clock."""
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """Resident memory of the worker at its most."""
    warnings: tuple[str, ...] = field(default=())


def analysis_to_json(analysis: Analysis) -> dict[str, Any]:
    """Build the object of analysis.json."""
    document = asdict(analysis)
    document["state"] = analysis.state.value
    return {"schema": SCHEMA, **document}


def knowledge(document: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Rank how much an analysis found, from the object of analysis.json: more is greater.

    One that was done knows more than one that failed; then the number of modules counts whose files
    were found, since frames are guessed without them; then that of the modules on a stack that have
    debug information; then that of the crashed thread's frames that have a name, and a line.
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
