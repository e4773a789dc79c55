"""The frame that the kernel leaves on a stack when it runs a signal handler: struct rt_sigframe,
with the signal's siginfo_t and the registers of the interrupted code. Pure; hostile bytes.

    x86-64     return address | ucontext | siginfo        arch/x86/include/asm/sigframe.h
    i386       return address | signal | two addresses | siginfo | ucontext, with SA_SIGINFO
               return address | signal | registers, without it
    aarch64    siginfo | ucontext                         arch/arm64/kernel/signal.c

The siginfo is there only for a handler with SA_SIGINFO; without it the bytes are whatever lay there
before. The processor's report of its last fault is with the registers in either case.

The ucontext begins with flags, link and the alternate stack (40 bytes). The registers follow on
x86-64 (struct sigcontext_64 of asm/sigcontext.h), the signal mask in 128 bytes on aarch64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

from crashd.domain.elf.elfnotes import EM_386, EM_AARCH64, EM_X86_64, SigInfo, parse_siginfo
from crashd.domain.elf.headers import Layout

FRAME_MAX: Final = 640
"""Bytes from the start of a frame that parse_frame() needs."""
_SIGINFO = 128
_INFO_USED = 48
"""Size of struct kernel_siginfo (32 on i386): what the kernel writes of a siginfo, before zeros."""
_SIGNALS = 64
_CODES = frozenset((*range(-8, 16), -60, 0x80))  # include/uapi/asm-generic/siginfo.h
_PID_MAX = 4 << 20
"""PID_MAX_LIMIT of include/linux/threads.h: no process has this id, or a larger one."""

# struct sigcontext_64, from uc + 40
_X86_REGISTERS = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax",
    "rcx", "rsp", "rip", "rflags",
)  # fmt: skip
_X86_CONTEXT, _X86_UCONTEXT_SIZE = 8 + 40, 304
INFO_AT = 8 + _X86_UCONTEXT_SIZE
"""Distance of the siginfo from the start of a frame on x86-64."""
_X86_CS, _X86_ERR = 18 * 8, 19 * 8  # then trapno, oldmask, cr2
_X86_USER_CS = 0x33
# struct sigcontext: fault_address (just before), regs[31], sp, pc, pstate
_ARM64_CONTEXT = 128 + 176 + 8  # sigcontext is aligned to 16
_ARM64_MASK = 128 + 40
_ARM64_REGISTERS = (*(f"x{n}" for n in range(31)), "sp", "pc", "pstate")
# struct sigcontext_32: gs, fs, es, ds, then these; trapno, err, eip, cs and eflags follow; last the
# signals that were blocked, and cr2
_386_REGISTERS = ("edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax")
_386_SIGCONTEXT = Struct("<22I")
_386_PLAIN, _386_INFO, _386_RT = 8, 16, 16 + _SIGINFO + 20
"""Where the registers are without SA_SIGINFO, the siginfo, and the registers with SA_SIGINFO."""
_386_EIP = 14 * 4  # then cs
_386_USER_CS = (0x23, 0x73)
_RESTORERS = {
    EM_386: (bytes.fromhex("b8ad000000cd80"), bytes.fromhex("58b877000000cd80")),
    EM_X86_64: (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05")),
    EM_AARCH64: (bytes.fromhex("681180d2010000d4"),),
}
"""The code to which a handler returns: the system call rt_sigreturn (on i386 also sigreturn), as in
glibc, musl, Go, Rust and the vDSO.
"""


@dataclass(frozen=True, slots=True)
class SignalFrame:
    """A signal that was being handled."""

    info: SigInfo | None
    """None if the bytes in its place are not a siginfo."""
    registers: Mapping[str, int]
    pc: int
    sp: int
    trap: int | None
    """The number of the thread's last exception (x86), which may be older than the signal."""
    error_code: int
    fault_address: int
    """Address of the thread's last page fault; 0 for other signals on aarch64."""
    blocked: int = 0
    """The signals that were blocked before: bit 0 is signal 1."""


def caught_signal(frame: SignalFrame, blocked: int) -> int | None:
    """Return the signal of a handler that blocks no other, from what is blocked in it; None if
    more signals, or fewer, became blocked, or if the frame's own was: the call that it interrupted
    set others meanwhile (sigsuspend).
    """
    added = blocked & ~frame.blocked
    if frame.info is not None and frame.blocked >> frame.info.signal - 1 & 1:
        return None
    return added.bit_length() if added and added & (added - 1) == 0 else None


def is_restorer(code: bytes, machine: int) -> bool:
    """Return whether a signal handler returns to this code."""
    return code.startswith(_RESTORERS.get(machine, ()))


def frame_address(machine: int, sp: int) -> int:
    """Return the address of a frame, from the stack pointer after its handler returned."""
    return sp - {EM_X86_64: 8, EM_386: 4}.get(machine, 0)


def saved_patterns(machine: int, pc: int, sp: int) -> tuple[tuple[bytes, int], ...]:
    """Return the bytes that hold these registers in a frame, and their distance from its start, for
    each form of frame; nothing for an unknown machine. On i386 `sp` is not among them.
    """
    bits = 32 if machine == EM_386 else 64
    if not (0 <= pc < 1 << bits and 0 <= sp < 1 << bits):
        return ()
    if machine == EM_386:
        raws = [Struct("<II").pack(pc, segment) for segment in _386_USER_CS]
        places = [at + _386_EIP for at in (_386_RT, _386_PLAIN)]
        return tuple((raw, place) for raw in raws for place in places)
    raw = Struct("<QQ").pack(sp, pc)  # they are adjacent in both layouts
    adjacent = {EM_X86_64: _X86_CONTEXT + 15 * 8, EM_AARCH64: _ARM64_CONTEXT + 31 * 8}
    return ((raw, adjacent[machine]),) if machine in adjacent else ()


def parse_frame(raw: bytes, machine: int) -> SignalFrame | None:
    """Parse a frame; None for bytes that cannot be one."""
    if machine == EM_386:
        return _386(raw)
    layout = Layout(machine, 64, "little")
    if machine == EM_X86_64 and len(raw) >= 8 + _X86_UCONTEXT_SIZE + _SIGINFO:
        return _x86(raw, layout)
    if machine == EM_AARCH64 and len(raw) >= _ARM64_CONTEXT + 8 * len(_ARM64_REGISTERS):
        values = Struct(f"<{len(_ARM64_REGISTERS)}Q").unpack_from(raw, _ARM64_CONTEXT)
        registers = dict(zip(_ARM64_REGISTERS, values, strict=True))
        (address,) = Struct("<Q").unpack_from(raw, _ARM64_CONTEXT - 8)
        if not _is_sound(registers["sp"]):
            return None
        info = _parse_info(raw[:_SIGINFO], layout)
        (blocked,) = Struct("<Q").unpack_from(raw, _ARM64_MASK)
        pc, sp = registers["pc"], registers["sp"]
        return SignalFrame(info, registers, pc, sp, None, 0, address, blocked)
    return None


def _x86(raw: bytes, layout: Layout) -> SignalFrame | None:
    values = Struct(f"<{len(_X86_REGISTERS)}Q").unpack_from(raw, _X86_CONTEXT)
    registers = dict(zip(_X86_REGISTERS, values, strict=True))
    (cs,) = Struct("<H").unpack_from(raw, _X86_CONTEXT + _X86_CS)
    error, trap, blocked, address = Struct("<QQQQ").unpack_from(raw, _X86_CONTEXT + _X86_ERR)
    if cs != _X86_USER_CS or not _is_sound(registers["rsp"]):
        return None
    info = _parse_info(raw[INFO_AT : INFO_AT + _SIGINFO], layout)
    pc, sp = registers["rip"], registers["rsp"]
    return SignalFrame(info, registers, pc, sp, trap, error, address, blocked)


def _386(raw: bytes) -> SignalFrame | None:
    """Parse a frame of i386; the address of the siginfo, in those that have one, is that of the
    ucontext less its size.
    """
    if len(raw) < _386_RT + _386_SIGCONTEXT.size:
        return None
    signal, info_at, context_at = Struct("<III").unpack_from(raw, 4)
    has_info = context_at - info_at == _SIGINFO
    values = _386_SIGCONTEXT.unpack_from(raw, _386_RT if has_info else _386_PLAIN)
    registers = dict(zip(_386_REGISTERS, values[4:12], strict=True))
    trap, error, pc, cs, flags = values[12:17]
    blocked, address, sp = values[20], values[21], registers["esp"]
    if cs & 0xFFFF not in _386_USER_CS or not _is_sound(sp) or not 1 <= signal <= _SIGNALS:
        return None
    info = _parse_info(raw[_386_INFO:][:_SIGINFO], Layout(EM_386, 32, "little"))
    registers |= {"eip": pc, "eflags": flags}
    info = info if has_info else None
    return SignalFrame(info, registers, pc, sp, trap, error, address, blocked)


def _is_sound(sp: int) -> bool:
    return sp != 0 and sp % 4 == 0


def _parse_info(raw: bytes, layout: Layout) -> SigInfo | None:
    found = parse_siginfo(raw, layout)
    if any(raw[_INFO_USED:]):
        return None  # the kernel clears the rest
    if found is None or not 1 <= found.signal <= _SIGNALS or found.errno != 0:
        return None
    if found.code not in _CODES:
        return None
    return found if 0 <= (found.sender_pid or 0) < _PID_MAX else None
