"""From a fault to its cause: what the instruction tried to do, through which pointer, and what is
mapped there. Pure.

The module is one idea, because each signal's judge is a branch of the same decision and they share
the judgment of pointers and regions.
"""

import re
from collections import Counter
from collections.abc import Sequence

from crashd.domain.cause.analysis import Access, Cause, Facts, Frame, Region
from crashd.domain.cause.helpers import below_failure, below_leaf
from crashd.domain.cause.names import plain_name
from crashd.domain.signals import SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, describe

FAULT_KINDS = frozenset(
    ("null-pointer", "wild-pointer", "freed-memory", "poisoned-memory", "overwritten-pointer",
     "non-canonical", "null-call", "wild-call", "wild-target", "execute-data", "return-address",
     "guard", "read-only", "no-permission", "protection-key", "control-flow", "unaligned",
     "general-protection", "stack-overflow", "past-end-of-file", "bus-error", "hardware-memory",
     "division-by-zero", "integer-overflow", "arithmetic", "illegal-instruction", "invalid-free")
)  # fmt: skip
"""Kinds that an instruction caused. In all others the process, or another one, ended it on purpose.
"""
NULL_MAX = 0x10000
"""Nothing is ever mapped below this address (vm.mmap_min_addr)."""
_OFFSET_MAX = 1 << 24
"""Bytes from a NULL pointer to a member of what it was to point to, at most."""
_STACK_REACH = 1 << 20
"""Bytes from the stack pointer to the first access in a function's frame, at most."""
_GAP_MAX = 1 << 20
_ENDS = ("stack", "guard")
"""What is above a stack pointer that is outside: the stack, or the guard page below a thread's."""
_FRAME_MAX = 1 << 30
"""Bytes, at most, of a function's frame that is larger than the stack."""
_HANDLER_ROOM = 16 << 10
"""Bytes for a signal's frame with the processor's extended state (11 KiB with AMX)."""
_SI_KERNEL = 0x80
_BUS_ADRALN, _BUS_ADRERR, _BUS_MCEERR_AR, _BUS_MCEERR_AO = 1, 2, 4, 5
_SEGV_ACCERR, _SEGV_PKUERR, _SEGV_MTESERR, _SEGV_CPERR = 2, 4, 9, 10
_TRAP_TRACE, _TRAP_HWBKPT = 2, 4
_ERROR_WRITE = 2  # X86_PF_WRITE (arch/x86/include/asm/trap_pf.h)
_ALIGNED = re.compile(r"^v?mov(aps|apd|dqa|dqa32|dqa64|ntps|ntpd|ntdq)$|\bcmpxchg16b$")
_LONGJMP = re.compile(r"_*(sig)?longjmp(_chk)?$")
_ALLOCATOR = re.compile(
    r"_*(libc_|(tc|je|mi)_)?((?P<name>malloc|calloc|memalign|posix_memalign|aligned_alloc|realloc|"
    r"free)|cfree)$|(operator |tc_)(?P<operator>new|delete)"
)
_TAKES_BACK = frozenset({"free", "realloc", "delete"})
_HEAPS_OWN = re.compile(r"_int_|unlink_chunk|malloc_consolidate|tcache_")
"""glibc's functions that use what the heap says of itself, after the first check of a pointer."""
_HUGE_PAGES = re.compile(r"/anon_hugepage|/dev/hugepages/")
_DIVISIONS = frozenset({"div", "idiv", "sdiv", "udiv"})
_PRIVILEGED = frozenset({"hlt", "cli", "sti", "in", "out", "rdmsr", "wrmsr", "invd", "lgdt", "int"})
_POISONS = {
    0x5A: "jemalloc's pattern of freed memory",
    0xA5: "jemalloc's pattern of memory never written",
    0x6B: "the pattern of freed memory",
    0xCD: "the pattern of memory never written",
    0xDD: "the pattern of freed memory",
    0xFD: "a pattern of freed or guard memory",
    0xBE: "AddressSanitizer's pattern of memory never written",
}
_WORDS = {0xDEADBEEF, 0xFEEDFACE, 0xBAADF00D, 0xCAFEBABE, 0xDEADDEAD, 0xFEEEFEEE, 0xABADCAFE}


def _access(facts: Facts) -> Access | None:
    """Return the access that failed: at the address of the fault, or at an impossible address."""
    access = facts.instruction.access if facts.instruction is not None else ()
    fault = facts.siginfo.address if facts.siginfo is not None else None
    # Exact match first. A large copy may fault after its first byte, so then look a little before.
    for reach in (0, 4096):
        for one in access:
            if fault is not None and one.address is not None:
                if one.address <= fault < one.address + max(one.size, 1) + reach:
                    return one
            elif one.address is not None and not _canonical(one.address, facts.bits):
                return one
    if fault is None and facts.siginfo is not None and facts.siginfo.code == _SI_KERNEL:
        return None
    return next((one for one in access if one.address is None), None)


def _canonical(address: int, bits: int) -> bool:
    return bits == 32 or address < 1 << 47 or address >= (1 << 64) - (1 << 47)


def _verb(facts: Facts, access: Access | None) -> str:
    """Return `read`, `write` or `access`, by the best witness.

    The processor's error code is a fact. So is a page that may be read: only a write fails there.
    The instruction comes last, because the access found may not be the one that failed.
    """
    info, region = facts.siginfo, facts.regions.get("fault")
    if info is not None and info.error_code is not None:
        return "write" if info.error_code & _ERROR_WRITE else "read"
    refused = info is not None and (info.signal, info.code) == (SIGSEGV, _SEGV_ACCERR)
    if refused and region is not None and region.perms.startswith("r-"):
        return "write"
    mode = access.mode if access is not None else ""
    return {"read": "read", "write": "write", "read-write": "write"}.get(mode, "access")


def _segv(facts: Facts) -> Cause | None:
    """Judge a SIGSEGV.

    The order matters: an overflowing stack faults at an ordinary address, so the guess by the
    pointer's value comes last.
    """
    info = facts.siginfo
    if info is None:
        return None
    access = _access(facts)
    if info.code == _SI_KERNEL or info.address is None:
        return _general_protection(facts, access)
    if info.code == _SEGV_PKUERR:
        return Cause(
            "protection-key", "memory protection key", "access denied by a memory protection key"
        )
    if info.code == _SEGV_CPERR:
        return Cause(
            "control-flow",
            "control protection fault",
            "a return or indirect jump to where none may go (control protection)",
        )
    fault, region = info.address, facts.regions.get("fault")
    pc = facts.regions.get("pc")
    if pc is not None and pc.address == fault and not _is_own_text(pc, access):
        if fault < NULL_MAX and _has_no_stack(facts):
            return _jumped(fault)
        return _return(fault, region) if facts.returned else _execute(fault, region)
    if _is_overflow(facts, fault, region):
        return stack_overflow(facts)
    if cause := _in_allocator(facts, access):
        return cause
    if access is not None and access.base_value == (1 << facts.bits) - 1:
        return _minus_one(facts, fault, access)
    if fault < NULL_MAX or _is_off_null(facts, fault, access):
        return _null(facts, fault, access)
    return _bad_pointer(facts, access) or _wrong_kind(facts, access, region)


def _in_allocator(facts: Facts, access: Access | None) -> Cause | None:
    """Judge a fault in malloc() or free(): the program gave free() a wrong pointer, or had
    overwritten the heap. None for any other fault, and where the pointer's value says more.
    """
    frames = below_leaf(facts.blamed)
    found = _allocator(frames)
    if found is None or _bad_pointer(facts, access) is not None:
        return None
    name, called = found
    inside = facts.blamed[: len(facts.blamed) - len(frames)]
    fault = facts.siginfo.address if facts.siginfo is not None else None
    at = f" at {fault:#x}" if fault is not None else ""
    if name in _TAKES_BACK and not any(_HEAPS_OWN.match(f.function or "") for f in inside):
        return Cause(
            "invalid-free",
            f"bad pointer passed to {called}",
            f"{called} got a pointer that is not from the allocator, or was freed, and faulted{at}",
        )
    return Cause(
        "heap-corruption",
        f"heap corruption: {called} faulted",
        f"heap corruption: {called} followed an overwritten pointer of the heap's own{at}"
        + (", or got a wrong pointer" if name in _TAKES_BACK else ""),
    )


def _allocator(frames: Sequence[Frame]) -> tuple[str, str] | None:
    """Return the allocator's function in the first frame: its name, and how it is shown."""
    found = _ALLOCATOR.match(plain_name(frames[0].function or "")) if frames else None
    if found is None:
        return None
    name = found["name"] or found["operator"] or "free"
    return name, f"operator {name}" if found["operator"] else f"{name}()"


def explain_abort(facts: Facts) -> Cause | None:
    """Return the cause of an allocator that called abort() itself; None if something else did."""
    frames = below_failure(facts.blamed)
    found = _allocator(below_leaf(frames))
    if found is None or frames is facts.blamed:
        return None
    text = (
        f"the allocator aborted in {found[1]}: a wrong pointer, an overwritten heap, or no memory"
    )
    return Cause("heap-corruption", f"heap check failed in {found[1]}", text)


def _minus_one(facts: Facts, fault: int, access: Access) -> Cause:
    verb = _verb(facts, access)
    return Cause(
        "wild-pointer",
        f"{verb} through the pointer -1",
        f"{verb} at {fault:#x}: the pointer is -1, which a failed mmap() returns (MAP_FAILED)",
    )


def _has_no_stack(facts: Facts) -> bool:
    sp = facts.regions.get("sp")
    return sp is not None and sp.address < NULL_MAX


def _jumped(fault: int) -> Cause:
    """Judge a jump to NULL that took the stack with it: a call would leave the stack alone."""
    short = "longjmp through an overwritten jmp_buf"
    text = f"{short}, or a switch to a stack that is none: the program counter is {fault:#x}"
    return Cause("wild-target", short, f"{text}, and the stack pointer is NULL, too")


def _execute(fault: int, region: Region | None) -> Cause:
    if fault < NULL_MAX:
        return Cause(
            "null-call",
            "call through a NULL pointer",
            f"a call or jump through a NULL function pointer (to {fault:#x})",
        )
    if region is None or region.kind == "none":
        return Cause(
            "wild-call",
            "call through a wild pointer",
            f"a call or jump to {fault:#x}, where nothing is mapped",
        )
    return Cause(
        "execute-data",
        "execution of data",
        f"a call or jump to {fault:#x}, which is {_name(region)} and not code",
    )


def _return(fault: int, region: Region | None) -> Cause:
    """Judge a return to a place without code: its address is the word that was popped last."""
    if fault >= NULL_MAX and (region is None or region.kind == "none"):
        return Cause(
            "return-address",
            "return to unmapped memory",
            f"a return to {fault:#x}, where nothing is mapped: the stack was overwritten, or the "
            "code was unloaded (dlclose)",
        )
    what = "which is not an address"
    if region is not None and region.kind != "none":
        what = f"which is {_name(region)} and not code"
    return Cause(
        "return-address",
        "return address overwritten",
        f"a return to {fault:#x}, {what}: the stack was overwritten",
    )


def _is_own_text(pc: Region, access: Access | None) -> bool:
    """Return whether an instruction that could be executed accessed its own bytes."""
    return access is not None and access.address == pc.address and "x" in pc.perms


def _is_off_null(facts: Facts, fault: int, access: Access | None) -> bool:
    """Return whether a NULL pointer was used with an offset that leads out of the first pages: a
    large member's, or a negative one. The register that held the pointer shows it.
    """
    if access is None or access.index is not None:
        return False
    if access.base_value != 0 and (access.base is not None or access.displacement == 0):
        return False  # without a register the compiler knew that the pointer is NULL
    near = min(fault, (1 << facts.bits) - fault) <= _OFFSET_MAX
    return near and access.address is not None and 0 <= fault - access.address < max(access.size, 1)


def _null(facts: Facts, fault: int, access: Access | None) -> Cause:
    verb = _verb(facts, access)
    text = f"NULL pointer: {verb} at address {fault:#x}"
    if fault >> (facts.bits - 1):
        text += f" (likely {(1 << facts.bits) - fault} bytes before a NULL structure or array)"
    elif access is not None and access.base_value == 0 and access.displacement > 0:
        text += f" (likely the member at offset {access.displacement} of a NULL structure)"
    elif fault:
        text += f" (likely {fault} bytes into a NULL structure or array)"
    return Cause("null-pointer", f"NULL pointer {verb}", text)


def _is_overflow(facts: Facts, fault: int, region: Region | None) -> bool:
    """Return whether the fault is at a stack's end, where the next frame does not fit."""
    sp = facts.regions.get("sp")
    if sp is None or region is None:
        return False
    if _was_opened(facts, region) and abs(fault - sp.address) <= _STACK_REACH:
        return True
    if sp.kind == "file" and "w" not in sp.perms:
        # the frame reaches over the guard page into what is mapped below the stack
        return abs(fault - sp.address) <= _STACK_REACH
    if region.kind not in ("none", "guard"):
        return False
    if sp.kind in ("none", "guard") and sp.above in _ENDS and sp.gap_bytes is not None:
        # the frame is larger than the stack: the stack pointer itself is outside
        return sp.gap_bytes <= _FRAME_MAX and -_STACK_REACH <= fault - sp.address <= sp.gap_bytes
    if abs(fault - sp.address) > _STACK_REACH or region.above not in ("anonymous", "stack"):
        return False
    return region.gap_bytes is not None and region.gap_bytes <= _GAP_MAX


def _was_opened(facts: Facts, region: Region) -> bool:
    """Return whether a handler made the page accessible that had refused an access: a runtime's own
    guard page at the end of a stack (the JVM's yellow zone).
    """
    info = facts.siginfo
    refused = info is not None and (info.signal, info.code) == (SIGSEGV, _SEGV_ACCERR)
    writable = region.kind in ("stack", "anonymous") and region.perms.startswith("rw")
    return refused and writable and facts.handled is not None


def _has_no_room(facts: Facts) -> bool:
    """Return whether the stack had no room for a signal's frame.

    The kernel then sends SIGSEGV without an address (force_sigsegv() of kernel/signal.c).
    """
    sp = facts.regions.get("sp")
    if sp is None:
        return False
    if sp.kind in ("none", "guard"):
        most = {"anonymous": _HANDLER_ROOM}.get(sp.above or "", 0)
        if sp.above in _ENDS:
            most = _FRAME_MAX
        return sp.gap_bytes is not None and 0 < sp.gap_bytes <= most
    if sp.kind != "stack" or sp.start is None or sp.end is None:
        return False
    return sp.address - sp.start <= _HANDLER_ROOM and sp.end - sp.start >= 8 * _HANDLER_ROOM


def stack_overflow(facts: Facts) -> Cause:
    """Return the cause that names the recursion that filled the stack."""
    names = [
        f"{plain_name(f.function)}()"
        if f.function
        else f"{(f.module or '?').rpartition('/')[2]}+{f.offset or f.pc or 0:#x}"
        for f in facts.blamed
    ]
    counts = Counter(names)
    repeated = [name for name, count in counts.items() if count >= 3]
    text = "stack overflow"
    if repeated:
        text += f": endless or too deep recursion of {', '.join(repeated[:3])}"
    else:
        text += ": a frame larger than what is left of the stack"
    return Cause("stack-overflow", "stack overflow", text)


def _bad_pointer(facts: Facts, access: Access | None) -> Cause | None:
    """Return what a bad pointer's value shows: a poison, text, or an allocator's mark."""
    if access is None:
        return None
    verb = _verb(facts, access)
    for value in (access.base_value, access.address):
        if value is None or not NULL_MAX <= value < 1 << facts.bits:
            continue
        pattern = _poison(value, facts.bits)
        if pattern is not None and (_ascii(value, facts.bits) is None or "pattern" in pattern):
            return Cause(
                "poisoned-memory",
                f"{verb} through a poisoned pointer",
                f"{verb} through {value:#x}: {pattern}",
            )
        if text := _ascii(value, facts.bits):
            return Cause(
                "overwritten-pointer",
                f"{verb} through a pointer overwritten by text",
                f'{verb} through {value:#x}, which is the text "{text}": the pointer was '
                "overwritten",
            )
    link = facts.regions.get("link")
    if link is not None and link.kind in ("anonymous", "stack") and "w" in link.perms:
        return Cause(
            "freed-memory",
            f"{verb} through a pointer in freed memory",
            f"{verb} through {access.base_value or 0:#x}, which is the allocator's own mark in "
            "freed memory: use after free",
        )
    return None


def _poison(value: int, bits: int) -> str | None:
    """Describe a poison value: equal upper bytes, or a known mark.

    The two lowest bytes may differ, because a member's offset may have been added.
    """
    raw = value.to_bytes(8, "big")[-bits // 8 :]
    top = set(raw[: len(raw) - 2])
    if len(top) == 1 and raw[0] not in (0x00, 0xFF):
        known = _POISONS.get(raw[0])
        return f"memory filled with {raw[0]:#04x}" + (f", {known}" if known else "")
    for word in (value >> 32, value & 0xFFFFFFFF):
        if word in _WORDS:
            return f"the mark {word:#x}, which programs put where no pointer is"
    return None


def _ascii(value: int, bits: int) -> str | None:
    """Return the text that a value spells in memory, None if it spells no text.

    The lowest byte may differ, because a member's offset may have been added.
    """
    raw = value.to_bytes(bits // 8, "little")
    if not all(0x20 <= byte < 0x7F for byte in raw[1:]) or bits == 32:
        return None
    return "".join(chr(b) if 0x20 <= b < 0x7F else "?" for b in raw)


def _wrong_kind(facts: Facts, access: Access | None, region: Region | None) -> Cause:
    fault = (facts.siginfo.address if facts.siginfo is not None else None) or 0
    verb = _verb(facts, access)
    if region is None or region.kind == "none":
        return Cause(
            "wild-pointer",
            f"{verb} through a wild pointer",
            f"{verb} at {fault:#x}, where nothing is mapped",
        )
    if region.kind == "guard" or region.perms == "---":
        return Cause(
            "guard",
            f"{verb} of protected memory",
            f"{verb} at {fault:#x}, in memory that nothing may touch (PROT_NONE)",
        )
    if verb == "write" and "w" not in region.perms:
        return Cause(
            "read-only",
            "write to read-only memory",
            f"write at {fault:#x}, which is read-only: {_name(region)}",
        )
    return Cause(
        "no-permission",
        f"{verb} without permission",
        f"{verb} at {fault:#x}, which is {_name(region)} ({region.perms})",
    )


def _name(region: Region) -> str:
    if region.kind == "file":
        return region.name or "a mapped file"
    return {"anonymous": "data or heap", "stack": "a stack", "vdso": "the vDSO"}.get(
        region.kind, region.kind
    )


def _bad_target(facts: Facts) -> Cause | None:
    """Judge a call, jump or return to a value that cannot be an address.

    Such an instruction faults itself, before control reaches the target.
    """
    target = facts.instruction.target if facts.instruction is not None else None
    if facts.instruction is None or target is None or _canonical(target, facts.bits):
        return None
    text = _ascii(target, facts.bits)
    what = f"{target:#x}, " + (f'which is the text "{text}"' if text else "which is not an address")
    if (facts.instruction.mnemonic or "").split(" ")[-1] == "ret":
        return Cause(
            "return-address",
            "return address overwritten",
            f"a return to {what}: the stack was overwritten",
        )
    if facts.blamed and _LONGJMP.match(facts.blamed[0].function or ""):
        short = "longjmp through an overwritten jmp_buf"
        return Cause("wild-target", short, f"{short}: its target is {what}")
    short = "call through a pointer overwritten by text" if text else "call through a wild pointer"
    return Cause("wild-target", short, f"a call or jump to {what}")


def _general_protection(facts: Facts, access: Access | None) -> Cause:
    """Return the cause of a fault for which the processor reports no address."""
    mnemonic = (facts.instruction.mnemonic if facts.instruction is not None else None) or ""
    if cause := _bad_target(facts):
        return cause
    if access is None and mnemonic not in _PRIVILEGED and _has_no_room(facts):
        return stack_overflow(facts)
    if access is not None and (cause := _in_allocator(facts, access)):
        return cause
    if access is not None:
        if cause := _bad_pointer(facts, access):
            return cause
        verb = _verb(facts, access)
        return Cause(
            "non-canonical",
            f"{verb} through a non-canonical pointer",
            f"{verb} at {access.address or 0:#x}, which can be no address (non-canonical)",
        )
    for one in facts.instruction.access if facts.instruction is not None else ():
        if _ALIGNED.search(mnemonic) and one.address is not None and one.address % 16:
            return Cause(
                "unaligned",
                "unaligned access",
                f"`{mnemonic}` at {one.address:#x}, which is not aligned to 16 bytes "
                "as it has to be",
            )
    unknown = facts.instruction.access if facts.instruction is not None else ()
    if unknown and all(one.address is None for one in unknown):
        verb = _verb(facts, unknown[0])
        text = f"{verb} through a pointer that can be no address (non-canonical)"
        return Cause("non-canonical", f"{verb} through a non-canonical pointer", text)
    if mnemonic == "hlt":
        text = "the program ran into `hlt`, by which C libraries end a process (abort, heap checks)"
        return Cause("general-protection", "general protection fault", text)
    return Cause(
        "general-protection",
        "general protection fault",
        f"the processor refused `{mnemonic or 'an instruction'}` (privileged, or a "
        "misused address)",
    )


def _bus(facts: Facts) -> Cause | None:
    info, region = facts.siginfo, facts.regions.get("fault")
    if info is None:
        return None
    if info.code == _SI_KERNEL:  # a stack fault (#SS): such a pointer in rbp or rsp
        return _general_protection(facts, _access(facts))
    verb, at = _verb(facts, _access(facts)), f"{info.address or 0:#x}"
    if info.code == _BUS_ADRALN:
        where = f" at {at}" if info.address else ""  # x86 reports no address
        return Cause("unaligned", "unaligned access", f"unaligned {verb}{where}")
    if info.code in (_BUS_MCEERR_AR, _BUS_MCEERR_AO):
        return Cause(
            "hardware-memory", "hardware memory error", f"the machine's memory failed at {at}"
        )
    if region is not None and _HUGE_PAGES.match(region.name):
        text = f"{verb} at {at}: the machine has no free huge page for it"
        return Cause("past-end-of-file", "no huge page left", text)
    if info.code == _BUS_ADRERR and region is not None and region.kind == "file":
        name = region.name.removesuffix(" (deleted)") or "a file"
        return Cause(
            "past-end-of-file",
            f"{verb} past the end of a mapped file",
            f"{verb} at {at}: {name} has become shorter than what is mapped of it, or "
            "its disk is full or broken",
        )
    return Cause("bus-error", f"bus error on {verb}", f"{verb} at {at}: its page could not be read")


def _fpe(facts: Facts) -> Cause | None:
    info = facts.siginfo
    if info is None:
        return None
    if info.code == 1:
        mnemonic = facts.instruction.mnemonic if facts.instruction is not None else None
        divisor = _divisor(facts)
        if mnemonic in _DIVISIONS and divisor:
            return Cause(
                "integer-overflow",
                "integer overflow in a division",
                "the quotient of an integer division is too large (the least number by -1)",
            )
        if divisor is None and mnemonic not in ("sdiv", "udiv"):
            text = "integer division by zero, or the least number by -1"
            return Cause("division-by-zero", "integer division by zero or overflow", text)
        return Cause("division-by-zero", "integer division by zero", "integer division by zero")
    words = describe(info.signal, info.code, None, None, None) or "arithmetic error"
    return Cause("arithmetic", words, words)


_X86_REGISTER = re.compile(r"(?:i?div) ([a-z0-9]+)$")


def _divisor(facts: Facts) -> int | None:
    """Return the value of a division's divisor, from a register or memory."""
    if facts.instruction is None:
        return None
    found = _X86_REGISTER.match(facts.instruction.text or "")
    if found is None:
        return facts.instruction.target
    name = found[1]
    for wide, mask in ((name, -1), ("r" + name[1:], 0xFFFFFFFF), (name.rstrip("dwb"), 0xFFFFFFFF)):
        if wide in facts.registers:
            return facts.registers[wide] & mask
    return None


_CHECKS = (
    "integer overflow in an addition", "unreachable code", "control flow integrity",
    "division overflow or by zero", "dynamic type", "floating-point conversion",
    "function type", "implicit conversion", "invalid builtin", "Objective-C cast",
    "invalid value", "missing return", "integer overflow in a multiplication",
    "integer overflow in a negation", "null argument", "null return", "null argument",
    "null return", "index out of bounds", "pointer overflow", "shift out of bounds",
    "integer overflow in a subtraction", "null or misaligned pointer", "alignment assumption",
    "length of a variable array",
)  # fmt: skip
"""In the order of clang's LIST_SANITIZER_CHECKS (CodeGenFunction.h)."""
_UD1 = re.compile(r"670fb9(?:40([0-9a-f]{2})|00$)")
"""`ud1 eax, [eax + check]`; `ud1 eax, [eax]` for check 0"""


def _trapped_check(facts: Facts) -> str | None:
    found = _UD1.match(facts.instruction.bytes) if facts.instruction is not None else None
    number = int(found[1] or "0", 16) if found else len(_CHECKS)
    return _CHECKS[number] if number < len(_CHECKS) else None


def _ill(facts: Facts) -> Cause | None:
    mnemonic = facts.instruction.mnemonic if facts.instruction is not None else None
    if check := _trapped_check(facts):
        return Cause(
            "trap",
            f"trap: {check}",
            f"the program ran into the trap of a check by the compiler: {check} "
            "(clang's -fsanitize-trap)",
        )
    if mnemonic in ("ud2", "ud1", "ud0", "udf", "brk"):
        return Cause(
            "trap",
            "deliberate trap",
            f"the program ran into `{mnemonic}`, where its "
            "compiler or author put a trap: unreachable or failed check",
        )
    text = facts.instruction.text if facts.instruction is not None else None
    if facts.instruction is None:
        unknown = "an illegal instruction, or a trap of the program's own: its code is not known"
        return Cause("illegal-instruction", "illegal instruction", unknown)
    return Cause(
        "illegal-instruction",
        "illegal instruction",
        f"illegal instruction{f' `{text}`' if text else ''}: unknown to this processor, or no code",
    )


def _trap(facts: Facts) -> Cause | None:
    code = facts.siginfo.code if facts.siginfo is not None else 0
    if code == _TRAP_TRACE:
        text = "the program executed one instruction with the processor's trap flag set"
        return Cause("breakpoint", "single step", text)
    if code == _TRAP_HWBKPT:
        text = "the program ran into a hardware breakpoint or watchpoint (a debugger's, or perf's)"
        return Cause("breakpoint", "hardware breakpoint", text)
    return Cause(
        "breakpoint",
        "breakpoint",
        "the program ran into a breakpoint (a debugger's, or a failed check)",
    )


_FAULTS = {SIGSEGV: _segv, SIGBUS: _bus, SIGFPE: _fpe, SIGILL: _ill, SIGTRAP: _trap}


def explain_fault(facts: Facts) -> Cause | None:
    """Return the cause of a signal that no process sent; None if the signal is not a fault."""
    judge = _FAULTS.get(facts.siginfo.signal) if facts.siginfo is not None else None
    return judge(facts) if judge is not None else None
