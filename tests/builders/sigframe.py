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
) -> bytes:
    """Build a struct rt_sigframe of x86-64."""
    context = pack("<18Q", *(registers.get(name, 0) for name in X86_NAMES))
    context += pack("<HHHHQQQQQ", cs, 0, 0, 0x2B, error, trap, 0, cr2, 0) + bytes(64)
    ucontext = bytes(40) + context + bytes(8)
    return pack("<Q", restorer) + ucontext + info


def build_arm64_frame(registers: dict[str, int], info: bytes, fault: int = 0) -> bytes:
    """Build a struct rt_sigframe of aarch64."""
    values: list[Any] = [registers.get(f"x{n}", 0) for n in range(31)]
    values += [registers["sp"], registers["pc"], 0]
    return info + bytes(40 + 128 + 8) + pack("<Q34Q", fault, *values) + bytes(64)
