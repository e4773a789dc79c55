"""Collects the facts in a report: frames, program counter, process, taint, modules. Pure.

Each architecture writes the same facts in its own form:

    x86      RIP: 0010:f+0x5/0x7 [mod]          Call Trace:  f+0x1/0x2 [mod], [<addr>] ? f+0x1/0x2
    arm64    pc : f+0x5/0x7 [mod]               Call trace:  f+0x1/0x2 [mod]
    riscv    epc : f+0x5/0x7 [mod]              Call Trace:  [<addr>] f+0x1/0x2
    s390     Krnl PSW : mask addr (f+0x5/0x7)   Call Trace:  [<addr>] f+0x1/0x2
    ppc      NIP [addr] f+0x5/0x7               Call Trace:  [stack] [addr] f+0x1/0x2 (unreliable)
    arm      PC is at f+0x5/0x7                 Backtrace:   [<addr>] (f) from [<addr>] (g+0x1/0x2)

Source: arch/*/kernel/{traps,process,stacktrace,dumpstack}.c, lib/dump_stack.c, kernel/panic.c.
Texts are hostile: every pattern is bounded, and so is what is kept.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from crashd.domain.kernellog.rustname import demangle

__all__ = [
    "FRAMES_MAX",
    "MODULES_MAX",
    "TAINTS",
    "ReportFacts",
    "TraceFrame",
    "collect_facts",
    "parse_frame",
]

FRAMES_MAX: Final = 64
MODULES_MAX: Final = 512
NAME_MAX: Final = 256
TAINT_LETTERS: Final = "[A-Z -]{1,64}"

TAINTS: Final = {  # kernel/panic.c, taint_flags; G: no proprietary module, so it says nothing
    "P": "proprietary module",
    "F": "module was loaded by force",
    "S": "cpu out of specification",
    "R": "module was unloaded by force",
    "M": "machine check",
    "B": "bad page",
    "U": "asked for by user",
    "D": "kernel died before",
    "A": "ACPI table overridden",
    "W": "kernel warned before",
    "C": "staging driver",
    "I": "firmware bug worked around",
    "O": "out-of-tree module",
    "E": "unsigned module",
    "L": "soft lockup before",
    "K": "live patched",
    "X": "auxiliary, the distribution's own",
    "T": "struct layout randomised",
    "N": "in-kernel test",
    "J": "fwctl debug write",
}

_SYMBOL = r"[A-Za-z_.$][\w.$]{0,511}"
_AT = r"\+0x(?P<offset>[0-9a-f]{1,8})/0x(?P<size>[0-9a-f]{1,8})"
_MODULE = r"(?: \[(?P<module>[\w-]{1,64})[^\]]{0,64}\])?"
_MODULE_18 = r"(?::[\w-]{1,64}:)?"  # x86-64 before 2.6.24
_ADDRESS = r"\[ ?<?(?:0x)?[0-9a-f]{4,16}>?\]"
_FRAME = re.compile(
    rf"(?:<{{1,2}}/?[#A-Z_0-9]{{2,16}}>{{1,2}} {{0,4}}){{0,3}}(?:\(?{_ADDRESS}\)? {{0,2}}){{0,2}}"
    rf"(?P<doubt>\? {{1,4}})?{_MODULE_18}(?P<function>{_SYMBOL}){_AT}{_MODULE}(?P<rest>.{{0,64}})"
)
_FRAME_ARM = re.compile(
    rf"(?:{_ADDRESS} \((?P<function>{_SYMBOL})(?:{_AT})?(?: \[(?P<module>[\w-]{{1,64}})\])?\) from "
    rf"|(?P<short>{_SYMBOL})(?: \[(?P<its>[\w-]{{1,64}})\])? from {_SYMBOL}\+0x)"
)
_FRAME_INLINE = re.compile(
    rf"(?P<doubt>\? )?(?P<function>{_SYMBOL}) "
    r"\(?[\w./-]{1,200}\.[chSs]:\d{1,7}(?: \(discriminator \d{1,4}\))?\)? \[inline\]"
)
_FRAME_DECODED = re.compile(
    rf"(?P<doubt>\? )?(?P<function>{_SYMBOL}) "
    r"\((?:[\w.-]{1,64}/){0,12}[\w.-]{1,64}\.[chSs]:\d{1,7}(?: \(discriminator \d{1,4}\))?\)"
    rf"(?P<inline> \(inlined\))?{_MODULE}(?: ?\([A-Z]\))?$"
)
"""By scripts/decode_stacktrace.sh, which removes offset and size."""
_PC = re.compile(
    r"(?:E?IP: (?:[0-9a-f]{4}:)?|RIP: (?:[0-9a-f]{4}:)?|RIP {1,2}|E?IP is at |(?:PC|pc) is at "
    r"|TPC: <|IAOQ\[0\]: |PC: (?=\[)|.{0,80} by insn @ "
    r"|e?pc {1,3}: "
    r"|NIP |Krnl PSW : [0-9a-f]{8,16} [0-9a-f]{8,16} \(|e?pc {0,3}: [0-9a-f]{8,16} "
    r"|ERA {0,3}: [0-9a-f]{16} |--- interrupt: [0-9a-f]{1,4} at )"
    rf"(?:{_ADDRESS} {{0,2}}){{0,2}}{_MODULE_18}(?P<function>{_SYMBOL})"
    rf"{_AT}{_MODULE}"
)
_PC_AGAIN = re.compile(r"RIP {1,2}\[|RIP: [A-Za-z_]\S{0,600} RSP: |EIP: .{1,700} SS:ESP ")
"""The program counter once more, at the end of a report; up to 4.14."""
_TRACE_START = re.compile(r"(?:Call [Tt]race:|[Bb]acktrace(?: \(crc [0-9a-f]{1,16}\))?:)")
_LOOSE_END = re.compile(
    r"(?:[Uu]ninit was|Local variable|Bytes |[Aa]llocated |[Ff]reed |kfence-#|-> #|stack backtrace:"
    r"|CPU: |other info|Modules linked in|---\[|=====|The buggy|Memory state|Kernel panic"
    r"|\d+ locks? held)"
)
"""Lines after which frames without a `Call Trace:` belong to another stack."""

_TRACE_END = (
    "Modules linked in",
    "---[",
    "Allocated",
    "Freed",
    "Object at",
    "The buggy",
    "Memory state",
    "=====",
    "Kernel panic",
    "Last Breaking",
    "Instruction dump",
    "Kernel Offset",
    "Sending NMI",
    "NMI backtrace",
    "Showing all",
    "Uninit was",
    "Last potentially related work",
)
_CPU = re.compile(
    r"CPU: (?P<cpu>\d{1,6})(?: UID: \d{1,10})? PID: (?P<pid>\d{1,10}) Comm: (?P<comm>.{1,64}) "
    rf"(?:Not tainted|Tainted: (?P<taint>{TAINT_LETTERS}?)) {{1,16}}(?P<release>\d\S{{0,127}})"
)
_CPU_OLD = re.compile(
    r"(?P<cpu>)Pid: (?P<pid>\d{1,10}), comm: (?P<comm>.{1,64}) "
    rf"(?:Not tainted|Tainted: (?P<taint>{TAINT_LETTERS}?)) {{1,16}}(?P<release>\d\S{{0,127}})"
)
_PROCESS = (
    re.compile(r"Process (?P<comm>.{1,64}) \(pid: (?P<pid>\d{1,10}),"),
    re.compile(r"task:(?P<comm>.{1,64}?) {1,16}state:.{1,40}? pid: {0,5}(?P<pid>\d{1,10}) "),
    re.compile(r'comm "(?P<comm>.{1,64})", pid (?P<pid>\d{1,10}), jiffies'),
    re.compile(r"(?:Read|Write|Free) of .{1,64} by task (?P<comm>.{1,64})/(?P<pid>\d{1,10})$"),
)
_TORN_CPU = re.compile(
    r"CPU: \d{1,6}(?: UID: \d{1,10})? PID: \d{1,10} Comm: (?!.{0,64}[Tt]ainted).{0,64}"
)
_WHO = ("Process ", "Read ", "Write ", "Free ", 'comm "', "task:")
_HUNG_STATE = re.compile(
    rf"(?:Not tainted|Tainted: (?P<taint>{TAINT_LETTERS}?)) {{1,16}}(?P<release>\d\S{{0,127}}) #\d"
)
_KDUMP = " Kdump: loaded"
_HARDWARE = re.compile(r"Hardware name: (?P<name>.{1,256})")
_MODULES = "Modules linked in:"
_MODULE_NAME = re.compile(r"([\w-]{1,64})(?:\([A-Z+-]{1,8}\))?")


@dataclass(frozen=True, slots=True)
class TraceFrame:
    """One function of a call trace."""

    function: str
    offset: int | None
    """Bytes into the function; None if it was inlined."""
    size: int | None
    module: str | None
    reliable: bool
    """False for a mere address on the stack (`? f`, `(unreliable)`)."""
    inlined: bool = False
    """Whether it was inlined; a log without symbols lacks such frames."""

    @property
    def location(self) -> str | None:
        """Offset and size as the kernel writes them: 0x1c/0x40."""
        if self.offset is None or self.size is None:
            return None
        return f"{self.offset:#x}/{self.size:#x}"


@dataclass(slots=True)
class ReportFacts:
    """The facts in the lines of one report."""

    pc: TraceFrame | None = None
    """The program counter in the kernel when it happened."""
    interrupted: TraceFrame | None = None
    """The program counter before the interrupt or trap in which the trace begins."""
    interrupted_at: int = 0
    """The number of frames above that."""
    trace: tuple[TraceFrame, ...] = ()
    comm: str | None = None
    pid: int | None = None
    cpu: int | None = None
    taint: str = ""
    """The letters."""
    modules: tuple[str, ...] = ()
    hardware: str | None = None
    release: str | None = None


def parse_frame(text: str) -> TraceFrame | None:
    """Parse a line of a call trace."""
    text = text.lstrip()
    match = _FRAME.match(text)
    if match is not None:
        return TraceFrame(
            _name(match["function"]),
            int(match["offset"], 16),
            int(match["size"], 16),
            match["module"],
            match["doubt"] is None and "(unreliable)" not in match["rest"],
        )
    match = _FRAME_ARM.match(text)
    if match is not None:
        name = match["function"] or match["short"]
        module = match["module"] or match["its"]
        return TraceFrame(_name(name), _hex(match["offset"]), _hex(match["size"]), module, True)
    match = _FRAME_INLINE.match(text)
    if match is not None:
        return TraceFrame(_name(match["function"]), None, None, None, match["doubt"] is None, True)
    match = _FRAME_DECODED.match(text)
    if match is not None:
        sure, inline = match["doubt"] is None, match["inline"] is not None
        return TraceFrame(_name(match["function"]), None, None, match["module"], sure, inline)
    return None


def collect_facts(texts: Iterable[str], *, headless: bool = False) -> ReportFacts:
    """Collect the facts in the lines of a report; the first mention of each counts.

    Args:
        texts: the lines.
        headless: whether they may begin in the middle of a call trace.
    """
    return _Collector(headless=headless).collect(texts)


class _Collector:
    """The state while the lines of a report are read."""

    def __init__(self, *, headless: bool) -> None:
        self._facts = ReportFacts()
        self._frames: list[TraceFrame] = []
        self._loose: list[TraceFrame] = []
        """Frames without a `Call Trace:`; used if there are none with one."""
        self._headless = self._in_trace = headless
        self._loose_done = False
        self._traces = 0
        self._late: TraceFrame | None = None

    def collect(self, texts: Iterable[str]) -> ReportFacts:
        for text in _joined(texts):
            self._take(text)
        facts = self._facts
        facts.trace = tuple((self._frames or self._loose)[:FRAMES_MAX])
        if facts.pc is None and self._headless:  # the registers are printed again at the end
            facts.pc = self._late
        return facts

    def _take(self, text: str) -> None:
        """Process one line: the start of a trace, a program counter, a frame, or other facts."""
        if _TRACE_START.match(text):
            self._in_trace, self._traces = not self._frames, self._traces + 1
            return
        pc = _parse_pc(text)
        if pc is not None and self._frames and _PC_AGAIN.match(text):
            self._late, self._in_trace = self._late or pc, False
        elif pc is not None:
            self._take_pc(pc)
        else:
            frame = parse_frame(text)
            if frame is not None and self._in_trace:
                self._frames.append(frame)
                return
            if frame is not None and not self._traces:
                if not self._loose_done:
                    self._loose.append(frame)
                return
            if self._in_trace:
                self._in_trace = not (self._frames and text.startswith(_TRACE_END))
            elif _LOOSE_END.match(text):
                self._end_loose(text)
        _collect_state(text, self._facts)

    def _end_loose(self, text: str) -> None:
        """End the stack without a head, or start again with the one after `CPU:`."""
        if text.startswith(("stack backtrace:", "CPU: ")):
            if text.startswith("stack") or len(self._loose) <= 1:
                self._loose, self._loose_done = [], False
        elif self._loose:
            self._loose_done = True

    def _take_pc(self, pc: TraceFrame) -> None:
        """Note a program counter.

        Within a trace it is where an interrupt or trap came in; before all traces it is where the
        crash happened; after them it only repeats one of these.
        """
        facts = self._facts
        above = self._frames if self._in_trace else self._loose
        if not self._in_trace and all(frame.function == pc.function for frame in above):
            above = []  # old kernels name the place of a fault in its head, too
        if (self._in_trace or not self._traces) and above:
            if facts.interrupted is None:
                facts.interrupted, facts.interrupted_at = pc, len(above)
        elif self._frames or self._traces:
            self._late = self._late or pc
        else:
            facts.pc = facts.pc or pc


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Yield lines without leading blanks; rejoin those split by a line break in a comm."""
    torn = ""
    for text in texts:
        text = text.lstrip()
        if torn:
            text, torn = f"{torn}\\x0a{text}", ""
        elif _TORN_CPU.fullmatch(text):
            torn = text
            continue
        yield text
    if torn:
        yield torn


def _parse_pc(text: str) -> TraceFrame | None:
    match = _PC.match(text) if text[:1] in "EIRPTepNK-" else None
    if match is None:
        return None
    offset, size = _hex(match["offset"]), _hex(match["size"])
    return TraceFrame(_name(match["function"]), offset, size, match["module"], True)


def _name(symbol: str) -> str:
    return demangle(symbol)[:NAME_MAX]


def _hex(digits: str | None) -> int | None:
    return int(digits, 16) if digits is not None else None


def _collect_state(text: str, facts: ReportFacts) -> None:
    """Collect the facts in a line that is not a frame."""
    if text.startswith(_MODULES):
        if not facts.modules:
            facts.modules = _parse_modules(text)
    elif text.startswith("Hardware name: "):
        if facts.hardware is None and (match := _HARDWARE.match(text)) is not None:
            facts.hardware = match["name"].strip()
    elif text.startswith(("CPU: ", "Pid: ")):
        _collect_cpu(text, facts)
    elif text.startswith(("Not tainted", "Tainted: ")):
        if (match := _HUNG_STATE.match(text)) is not None:
            _collect_release(match, facts)
    elif facts.comm is None and text.startswith(_WHO):
        for pattern in _PROCESS:
            match = pattern.match(text)
            if match is not None:
                facts.comm, facts.pid = match["comm"], int(match["pid"])
                return


def _collect_cpu(text: str, facts: ReportFacts) -> None:
    match = _CPU.match(text) or _CPU_OLD.match(text)
    if match is None:
        return
    _collect_release(match, facts)
    if facts.cpu is None and match["cpu"]:
        facts.cpu = int(match["cpu"])
    if facts.comm is None:
        facts.comm = match["comm"].removesuffix(_KDUMP)
        facts.pid = int(match["pid"])


def _collect_release(match: re.Match[str], facts: ReportFacts) -> None:
    if facts.release is None:
        facts.release = match["release"]
        facts.taint = "".join(
            dict.fromkeys((match["taint"] or "").replace(" ", "").replace("-", ""))
        )


def _parse_modules(text: str) -> tuple[str, ...]:
    names = []
    for word in text[len(_MODULES) :].split():
        match = _MODULE_NAME.fullmatch(word)
        if match is None:  # "[last unloaded: …]"
            break
        names.append(match[1])
        if len(names) == MODULES_MAX:
            break
    return tuple(names)
