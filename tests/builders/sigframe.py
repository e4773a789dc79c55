"""Build what the kernel leaves on a stack for a signal's handler."""

from struct import pack
from typing import Any

X86_NAMES = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax",
    "rcx", "rsp", "rip", "rflags",
)  # fmt: skip


def build_siginfo(signal: int, code: int, first: int = 0) -> bytes:
    """Build a siginfo_t; `first` is si_addr, or si_pid and si_uid."""
    return pack("<iiiiQ", signal, 0, code, 0, first).ljust(128, b"\0")


def build_x86_frame(
    restorer: int,
    registers: dict[str, int],
    info: bytes,
    *,
    trap: int = 14,
    error: int = 4,
    cr2: int = 0,
    cs: int = 0x33,
    blocked: int = 0,
) -> bytes:
    """Build a struct rt_sigframe of x86-64."""
    context = pack("<18Q", *(registers.get(name, 0) for name in X86_NAMES))
    context += pack("<HHHHQQQQQ", cs, 0, 0, 0x2B, error, trap, blocked, cr2, 0) + bytes(64)
    ucontext = bytes(40) + context + bytes(8)
    return pack("<Q", restorer) + ucontext + info


def build_arm64_frame(
    registers: dict[str, int], info: bytes, fault: int = 0, *, blocked: int = 0
) -> bytes:
    """Build a struct rt_sigframe of aarch64."""
    values: list[Any] = [registers.get(f"x{n}", 0) for n in range(31)]
    values += [registers["sp"], registers["pc"], 0]
    ucontext = bytes(40) + pack("<Q", blocked) + bytes(120 + 8)
    return info + ucontext + pack("<Q34Q", fault, *values) + bytes(64)


def build_386_frame(
    signal: int,
    registers: dict[str, int],
    info: bytes | None,
    *,
    cr2: int = 0,
    cs: int = 0x23,
    blocked: int = 0,
) -> bytes:
    """Build a frame of i386, of the form for handlers with or without SA_SIGINFO."""
    names = ("edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax")
    context = pack("<4I", 0, 0, 0x2B, 0x2B) + pack("<8I", *(registers.get(n, 0) for n in names))
    context += pack("<10I", 14, 6, registers["eip"], cs, 0x202, 0, 0x2B, 0, blocked, cr2)
    if info is None:
        return (pack("<II", 1, signal) + context).ljust(640, b"\0")
    places = pack("<II", 0xFFF0_0010, 0xFFF0_0090)
    return (pack("<II", 1, signal) + places + info + bytes(20) + context).ljust(640, b"\0")
