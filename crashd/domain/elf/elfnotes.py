"""The notes of an ELF core: threads, siginfo, auxiliary vector, mapped files.

fs/binfmt_elf.c (fill_note_info) and the architectures' headers define what the kernel writes. The
process itself chooses comm, psargs, file names and (by PR_SET_MM_MAP) the auxiliary vector. Work is
linear in the bytes given, and nothing raises: damage is recorded in `Notes.problems`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from crashd.domain.elf.auxv import parse_auxv
from crashd.domain.elf.headers import FILE_END_MAX, Layout, split_notes

NOTES_MAX: Final = 2**18
PROBLEMS_MAX: Final = 20
PATH_MAX: Final = 4096  # include/uapi/linux/limits.h

# include/uapi/linux/elf.h
NT_PRSTATUS: Final = 1
NT_PRPSINFO: Final = 3
NT_AUXV: Final = 6
NT_SIGINFO: Final = 0x53494749
NT_FILE: Final = 0x46494C45

# include/uapi/linux/elf-em.h
EM_SPARC: Final = 2
EM_386: Final = 3
EM_MIPS: Final = 8
EM_PPC: Final = 20
EM_PPC64: Final = 21
EM_S390: Final = 22
EM_ARM: Final = 40
EM_SH: Final = 42
EM_SPARCV9: Final = 43
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
EM_RISCV: Final = 243
EM_LOONGARCH: Final = 258
EM_ALPHA: Final = 0x9026

# Offsets in struct elf_prstatus, include/linux/elfcore.h: pr_cursig, pr_pid, pr_reg.
_PR_CURSIG = 12
_PR_PID = {64: 32, 32: 24}
_PR_SIGHOLD = {64: 24, 32: 20}
_PR_REG = {64: 112, 32: 72}
# Offsets of pc and sp in pr_reg, and the size of a register: the architectures' asm/ptrace.h.
_REGISTERS: Mapping[tuple[int, int], tuple[int, int, int]] = {
    (EM_X86_64, 64): (16 * 8, 19 * 8, 8),
    (EM_X86_64, 32): (16 * 8, 19 * 8, 8),  # x32: 64-bit registers in a 32-bit prstatus
    (EM_386, 32): (12 * 4, 15 * 4, 4),
    (EM_AARCH64, 64): (32 * 8, 31 * 8, 8),
    (EM_ARM, 32): (15 * 4, 13 * 4, 4),
    (EM_RISCV, 64): (0, 2 * 8, 8),
    (EM_RISCV, 32): (0, 2 * 4, 4),
    (EM_S390, 64): (8, 16 + 15 * 8, 8),
    (EM_S390, 32): (4, 8 + 15 * 4, 4),
    (EM_PPC64, 64): (32 * 8, 1 * 8, 8),
    (EM_PPC, 32): (32 * 4, 1 * 4, 4),
    (EM_MIPS, 64): (34 * 8, 29 * 8, 8),
    (EM_MIPS, 32): (40 * 4, (6 + 29) * 4, 4),  # o32; n32: _MIPS_N32
    (EM_SPARCV9, 64): (33 * 8, 14 * 8, 8),
    (EM_SPARC, 32): (33 * 4, 14 * 4, 4),
    (EM_LOONGARCH, 64): (33 * 8, 3 * 8, 8),
    (EM_ALPHA, 64): (31 * 8, 30 * 8, 8),
    (EM_SH, 32): (16 * 4, 15 * 4, 4),
}
_MIPS_N32 = (34 * 8, 29 * 8, 8)
_MIPS_N32_SIZE = 440
"""sizeof(struct elf_prstatus) of MIPS's n32, which has the 64-bit registers; o32's is 256."""
_S390_31_BIT = 0x7FFFFFFF
"""The address in the program status word; the highest bit is the addressing mode."""
# sizeof(struct elf_prpsinfo), and the offset of pr_fname in it; pr_psargs follows pr_fname. The
# 32-bit size depends on whether the architecture's old uid_t had 16 bits.
_PR_FNAME = {136: 40, 124: 28, 128: 32}
_FNAME_SIZE = 16

# Signals and codes whose numbers differ: asm/signal.h and asm/siginfo.h of the architectures.
_SPARC_SIGNALS = {
    7: 0, 10: 7, 12: 31, 16: 23, 17: 19, 18: 20, 19: 18, 20: 17, 23: 29, 24: 24, 25: 25, 29: 30,
    30: 10, 31: 12,
}  # fmt: skip
_SIGNALS: Mapping[int, Mapping[int, int]] = {
    EM_MIPS: {
        7: 0, 10: 7, 12: 31, 16: 10, 17: 12, 18: 17, 19: 30, 20: 28, 21: 23, 22: 29, 23: 19,
        24: 20, 25: 18, 26: 21, 27: 22, 28: 26, 29: 27, 30: 24, 31: 25,
    },
    EM_SPARC: _SPARC_SIGNALS,
    EM_SPARCV9: _SPARC_SIGNALS,
    EM_ALPHA: _SPARC_SIGNALS,
}  # fmt: skip
"""The architecture's own number, and the number that domain.signals has a name for; 0 is SIGEMT."""
_MIPS_CODES = {-2: -4, -3: -2, -4: -3}  # SI_ASYNCIO, SI_TIMER, SI_MESGQ

# Signals that carry an address if their si_code is between SI_USER and SI_KERNEL:
# siginfo_layout() in kernel/signal.c; codes of include/uapi/asm-generic/siginfo.h.
_ADDRESSED = frozenset({4, 5, 7, 8, 11, 31})  # SIGILL SIGTRAP SIGBUS SIGFPE SIGSEGV SIGSYS
_SIGCHLD = 17
_SI_KERNEL = 0x80
_SI_TIMER, _SI_SIGIO = -2, -5


@dataclass(frozen=True, slots=True)
class Thread:
    """An NT_PRSTATUS note; pc and sp are None if the architecture is unknown or the note short."""

    tid: int
    """In the process's own pid namespace."""
    signal: int
    """As domain.signals numbers it, on any architecture."""
    pc: int | None
    sp: int | None
    blocked: int = 0
    """The signals that it had blocked (pr_sighold): bit 0 is signal 1."""


@dataclass(frozen=True, slots=True)
class SigInfo:
    """The NT_SIGINFO note, siginfo_t of sigaction(2)."""

    signal: int
    """As domain.signals numbers it, on any architecture."""
    code: int
    errno: int
    address: int | None
    """Address of the fault; None if a fault did not raise the signal."""
    sender_pid: int | None
    """In the receiver's pid namespace, 0 if the sender is outside of it; None without a sender."""
    sender_uid: int | None


@dataclass(frozen=True, slots=True)
class MappedFile:
    """An entry of the NT_FILE note."""

    start: int
    end: int
    offset_bytes: int
    name: bytes
    """PATH_MAX bytes at most."""


@dataclass(slots=True)
class Notes:
    """What the notes parsed so far contain."""

    threads: list[Thread] = field(default_factory=list)
    siginfo: SigInfo | None = None
    auxv: dict[int, int] = field(default_factory=dict)
    files: tuple[MappedFile, ...] = ()
    comm: bytes = b""
    psargs: bytes = b""
    problems: list[str] = field(default_factory=list)
    count: int = 0
    seen: set[int] = field(default_factory=set)

    def problem(self, text: str) -> None:
        """Add a line to `problems`, unless it is there already or the list has PROBLEMS_MAX."""
        if len(self.problems) < PROBLEMS_MAX and text not in self.problems:
            self.problems.append(text)


def collect_notes(blob: bytes, layout: Layout, found: Notes) -> None:
    """Parse the notes of a core's PT_NOTE segment into `found`."""
    for name, kind, desc, whole in split_notes(blob, layout):
        found.count += 1
        if found.count > NOTES_MAX:
            found.problem(f"more than {NOTES_MAX} notes")
            return
        if not whole:
            found.problem("a note is cut")
        if name == b"CORE":
            _collect_note(kind, desc, layout, found)


def _collect_note(kind: int, desc: bytes, layout: Layout, found: Notes) -> None:
    if kind == NT_PRSTATUS:
        thread = _parse_prstatus(desc, layout)
        if thread is None:
            found.problem("NT_PRSTATUS is too short for a thread id")
            return
        found.threads.append(thread)
        if thread.pc is None and (layout.machine, layout.bits) in _REGISTERS:
            found.problem("NT_PRSTATUS is too short for its registers")
        return
    if kind not in (NT_PRPSINFO, NT_SIGINFO, NT_AUXV, NT_FILE):
        return
    if kind in found.seen:
        if kind != NT_SIGINFO:  # gdb writes one for each thread, the crashing thread's first
            found.problem(f"there is a second note of type {kind:#x}")
        return
    found.seen.add(kind)
    if kind == NT_PRPSINFO:
        _collect_prpsinfo(desc, found)
    elif kind == NT_SIGINFO:
        found.siginfo = parse_siginfo(desc, layout)
        if found.siginfo is None:
            found.problem("NT_SIGINFO is too short")
    elif kind == NT_AUXV:
        found.auxv = parse_auxv(desc, layout.bits, layout.byteorder)
    else:
        found.files = _parse_files(desc, layout, found)


def _parse_prstatus(desc: bytes, layout: Layout) -> Thread | None:
    if len(desc) < _PR_PID[layout.bits] + 4:
        return None
    (signal,) = layout.struct("h").unpack_from(desc, _PR_CURSIG)
    signal = _common_signal(signal, layout.machine)
    (tid,) = layout.struct("i").unpack_from(desc, _PR_PID[layout.bits])
    (blocked,) = layout.struct("L").unpack_from(desc, _PR_SIGHOLD[layout.bits])
    registers = _REGISTERS.get((layout.machine, layout.bits))
    if layout.machine == EM_MIPS and layout.bits == 32 and len(desc) == _MIPS_N32_SIZE:
        registers = _MIPS_N32
    if registers is None:
        return Thread(tid, signal, None, None, blocked)
    pc_at, sp_at, size = registers
    base = _PR_REG[layout.bits]
    if len(desc) < base + max(pc_at, sp_at) + size:
        return Thread(tid, signal, None, None, blocked)
    register = layout.struct("Q" if size == 8 else "I")
    (pc,) = register.unpack_from(desc, base + pc_at)
    (sp,) = register.unpack_from(desc, base + sp_at)
    if (layout.machine, layout.bits) == (EM_S390, 32):
        pc &= _S390_31_BIT
    return Thread(tid, signal, pc, sp, blocked)


# struct user_regs_struct32 (arch/x86/include/asm/user32.h)
_USER_REGS_386 = (
    "ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "ds", "es", "fs", "gs", "orig_eax", "eip",
    "cs", "eflags", "esp", "ss",
)  # fmt: skip


def parse_registers_386(desc: bytes) -> dict[str, int]:
    """Return the registers in an NT_PRSTATUS note of an i386 program; empty if it is short."""
    struct = Layout(EM_386, 32, "little").struct(f"{len(_USER_REGS_386)}I")
    if len(desc) < _PR_REG[32] + struct.size:
        return {}
    return dict(zip(_USER_REGS_386, struct.unpack_from(desc, _PR_REG[32]), strict=True))


def _common_signal(signal: int, machine: int) -> int:
    return _SIGNALS.get(machine, {}).get(signal, signal)


def _collect_prpsinfo(desc: bytes, found: Notes) -> None:
    at = _PR_FNAME.get(len(desc))
    if at is None:
        found.problem(f"NT_PRPSINFO has {len(desc)} bytes, an unknown layout")
        return
    found.comm = desc[at : at + _FNAME_SIZE].split(b"\0", 1)[0]
    found.psargs = desc[at + _FNAME_SIZE :].split(b"\0", 1)[0].rstrip(b" ")


def parse_siginfo(desc: bytes, layout: Layout) -> SigInfo | None:
    """Parse a siginfo_t; None if it is too short."""
    union_at = 16 if layout.bits == 64 else 12
    if len(desc) < union_at + 8:
        return None
    signal, errno, code = layout.struct("iii").unpack_from(desc)
    if layout.machine == EM_MIPS:  # __ARCH_HAS_SWAPPED_SIGINFO
        errno, code = code, _MIPS_CODES.get(errno, errno)
    signal = _common_signal(signal, layout.machine)
    address = pid = uid = None
    if 0 < code < _SI_KERNEL and signal in _ADDRESSED:
        (address,) = layout.struct("L").unpack_from(desc, union_at)
    elif (0 < code < _SI_KERNEL and signal == _SIGCHLD) or (
        code <= 0 and code not in (_SI_TIMER, _SI_SIGIO)
    ):
        pid, uid = layout.struct("iI").unpack_from(desc, union_at)
    return SigInfo(signal, code, errno, address, pid, uid)


def _parse_files(desc: bytes, layout: Layout, found: Notes) -> tuple[MappedFile, ...]:
    """Parse NT_FILE: count, page size, count times (start, end, offset in pages), count names."""
    pair, triple = layout.struct("LL"), layout.struct("LLL")
    if len(desc) < pair.size:
        found.problem("NT_FILE is too short")
        return ()
    count, page_size = pair.unpack_from(desc)
    there = min(count, (len(desc) - pair.size) // triple.size)
    names_at = pair.size + there * triple.size
    # Each name ends in a NUL, so the bytes after the last NUL are the start of a cut name.
    names = desc[names_at:].split(b"\0", there)[:-1]
    if len(names) < count:
        found.problem("NT_FILE holds less than it says")
    files: list[MappedFile] = []
    ranges = triple.iter_unpack(desc[pair.size : names_at])
    for (start, end, pages), name in zip(ranges, names, strict=False):
        offset = pages * page_size  # gdb writes a page size of 1
        if end < start or offset > FILE_END_MAX:
            found.problem("NT_FILE has an absurd entry")
            continue
        if len(name) > PATH_MAX:
            found.problem("NT_FILE has a name longer than PATH_MAX")
        files.append(MappedFile(start, end, offset, name[:PATH_MAX]))
    return tuple(files)
