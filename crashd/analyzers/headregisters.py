"""The crashed thread's registers in the head of a core, and that head with other ones (x86-64)."""

from collections.abc import Mapping

from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.elfnotes import EM_X86_64

# struct user_regs_struct, pr_reg of struct elf_prstatus (arch/x86/include/asm/user_64.h)
_PR_REG = 112
_USER_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp",
)  # fmt: skip
_NOTES_LOOKED_AT = 8


def return_from_data(raw_head: bytes, image: CoreImage) -> tuple[int, bytes] | None:
    """Return the program counter of a crashed thread that jumped to a place without code (data, or
    an unloaded library), and the head of a core in which the thread has returned from there. None
    for any other thread.

    Such a place has no unwind information, and the frame pointer would lead past the caller.
    """
    head = image.head
    first = head.threads[0] if head.threads else None
    if head.machine != EM_X86_64 or head.bits != 64 or first is None:
        return None
    if first.pc is None or first.sp is None:
        return None
    caller = image.word(first.sp)
    if first.pc == 0 or image.is_code(first.pc) or caller is None or not image.is_code(caller):
        return None  # drgn itself returns from address 0
    sp = (first.sp + 8) % (1 << 64)
    patched = with_registers(raw_head, image, {"rip": caller, "rsp": sp})
    return None if patched is None else (first.pc, patched)


def with_registers(raw_head: bytes, image: CoreImage, registers: Mapping[str, int]) -> bytes | None:
    """Return a copy of the head in which the crashed thread has other registers (x86-64)."""
    head = image.head
    first = head.threads[0]
    if head.machine != EM_X86_64 or head.bits != 64 or not head.notes:
        return None
    start, size = head.notes[0]
    patched = bytearray(raw_head)
    # The note of the first thread: its name "CORE", then its prstatus. The kernel writes it first,
    # gdb after the note of the process.
    name = start - 1
    for _ in range(_NOTES_LOOKED_AT):
        name = raw_head.find(b"CORE\0\0\0\0", name + 1, start + size)
        at = name + 8 + _PR_REG
        if name < 0:
            return None
        if all(_register(patched, at, *known) for known in (("rip", first.pc), ("rsp", first.sp))):
            break
    else:
        return None
    for index, register in enumerate(_USER_REGS):
        if register in registers:
            value = registers[register].to_bytes(8, "little")
            patched[at + 8 * index : at + 8 * index + 8] = value
    return bytes(patched)


def _register(raw: bytearray, at: int, name: str, value: int | None) -> bool:
    """Return whether a register in a prstatus has this value."""
    here = at + 8 * _USER_REGS.index(name)
    return value is not None and raw[here : here + 8] == value.to_bytes(8, "little")
