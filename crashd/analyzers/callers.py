"""Callers of functions without unwind information: musl, code made at run time.

A word on the stack counts as a return address only if the call before it leads to the function that
is being returned from. Stale words rarely fulfil that, and a guess is worse than a short stack.
x86-64 only.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.elfnotes import EM_X86_64

_SEARCHED_BYTES = 2048
"""Size of a frame, at most."""
_FUNCTION_MAX = 4096
"""Bytes of a function whose start is known only from the call."""
_JUMPS_MAX = 4
_G_M, _G_SCHED, _G_SCHED_BP = 0x30, 0x38, (0x68, 0x60)
_M_SEARCHED = 512
"""Bytes of struct m in which the current goroutine is, at a place that changed with versions."""
_STACK_MAX = 1 << 20
"""Bytes of a stack that are searched for what called longjmp()."""
_LONGJMP = re.compile(r"_*(lib\w*_)?(sig)?longjmp(_chk)?$")
_ENDBR = bytes.fromhex("f30f1efa")


_OUTERMOST = ("_start", "__clone", "clone", "runtime.goexit", "runtime.rt0_go")
"""Functions that start a process or a thread, by the beginning of their names."""


class Caller(NamedTuple):
    """Where a function returns to."""

    pc: int
    sp: int
    """After the return."""


def is_outermost(function: str | None) -> bool:
    """Return whether a function has no caller: the walk may end there, whatever lies behind it."""
    return (function or "").startswith(_OUTERMOST)


def starts_stack(function: str | None) -> bool:
    """Return whether a function of Go's runtime runs what it calls on the thread's own stack: what
    lies behind it there is left from earlier. Source: topofstack() in Go's runtime/traceback.go.
    """
    return _plain(function) == "runtime.mcall"


def grows_stack(function: str | None) -> bool:
    """Return whether a function of Go's runtime was called because a goroutine's stack is full: it
    runs on the thread's own stack, and what lies behind it there is left from earlier.
    """
    return _plain(function) in ("runtime.morestack", "runtime.morestackc")


def _plain(function: str | None) -> str:
    """Return the name of a function of Go's runtime without its calling convention."""
    return (function or "").removesuffix(".abi0")


def find_goroutine(image: CoreImage, registers: Mapping[str, int]) -> dict[str, int] | None:
    """Return the registers of the goroutine whose stack is full, where it called
    runtime.morestack; None if the runtime's structures do not point to each other as they have to.

    Offsets: m and sched in struct g, g0 in struct m (runtime/runtime2.go).
    """
    if image.head.machine != EM_X86_64:
        return None
    local = image.word(registers.get("fs.base", 0) - 8)
    for own in (local, registers.get("r14")):
        machine = image.word((own or 0) + _G_M)
        system = image.word(machine) if machine else None
        if not machine or system is None or image.word(system + _G_M) != machine:
            continue
        raw = image.read(machine + 8, _M_SEARCHED)
        for at in range(0, len(raw) - 7, 8):
            goroutine = int.from_bytes(raw[at : at + 8], "little")
            if goroutine not in (0, system) and image.word(goroutine + _G_M) == machine:
                found = _left_at(image, goroutine)
                if found is not None:
                    return found
    return None


def _left_at(image: CoreImage, goroutine: int) -> dict[str, int] | None:
    """Return where a goroutine was left for the thread's own stack."""
    low, high = image.word(goroutine), image.word(goroutine + 8)
    sp, pc = image.word(goroutine + _G_SCHED), image.word(goroutine + _G_SCHED + 8)
    if not (low and high and sp and pc and low <= sp < high and image.is_code(pc)):
        return None
    frames = (image.word(goroutine + at) for at in _G_SCHED_BP)
    frame = next((at for at in frames if at and sp <= at < high), None)
    found = {"rip": pc, "rsp": sp}
    return found if frame is None else {**found, "rbp": frame}


def find_caller(image: CoreImage, pc: int, sp: int, start: int | None) -> Caller | None:
    """Find the caller of the function at `pc`; `start` is the function's start, if it is known."""
    if image.head.machine != EM_X86_64 or image.head.bits != 64:
        return None
    sp &= ~7
    raw = image.read(sp, _SEARCHED_BYTES)
    for at in range(0, len(raw) - 7, 8):
        value = int.from_bytes(raw[at : at + 8], "little")
        target = call_target(image, value)
        if target is None:
            if at == 0 and start is None and follows_call(image, value):
                return Caller(value, sp + 8)  # called through a register; it has no frame
            continue
        if target == start or (start is None and 0 <= pc - target < _FUNCTION_MAX):
            return Caller(value, sp + at + 8)
    return None


def jumps_away(function: str | None) -> bool:
    """Return whether a function leaves its stack for another place (longjmp)."""
    return _LONGJMP.match(function or "") is not None


def find_jumper(image: CoreImage, start: int, stack: tuple[int, int]) -> Caller | None:
    """Find what called a function that has replaced the stack pointer already: the highest return
    address within `stack` behind a call that leads to the function's start. What lies below it is
    left from earlier calls.
    """
    if image.head.machine != EM_X86_64 or image.head.bits != 64:
        return None
    low = max(stack[0], stack[1] - _STACK_MAX)
    raw = image.read(low, stack[1] - low)
    for at in range((len(raw) & ~7) - 8, -1, -8):
        value = int.from_bytes(raw[at : at + 8], "little")
        if value >> 47 == 0 and call_target(image, value) == start:
            return Caller(value, low + at + 8)
    return None


def follows_call(image: CoreImage, address: int) -> bool:
    """Return whether the instruction before an address is a call, of any form."""
    if address < 4096 or not image.is_code(address):
        return False
    code = image.read(address - 7, 7)
    if len(code) < 7:
        return False
    # e8 rel32; ff /2 with a register, with a displacement of 8 or 32 bits, through rip or an index
    return code[2] == 0xE8 or any(
        code[7 - size] == 0xFF and code[8 - size] >> 3 & 7 == 2 for size in (2, 3, 4, 6, 7)
    )


def call_target(image: CoreImage, address: int) -> int | None:
    """Return the function that the call right before an address calls, through stubs of the linker;
    None if there is no call, or its target depends on registers.
    """
    return next(reversed(call_targets(image, address)), None)


def call_targets(image: CoreImage, address: int) -> list[int]:
    """Return what the call right before an address leads to: the functions on the way that only
    jump on (stubs of the linker, other names), and last the one that runs. Empty if there is no
    call, or its target depends on registers or is no code.
    """
    if address < 4096 or not image.is_code(address):
        return []
    code = image.read(address - 6, 6)
    if len(code) < 6:
        return []
    place = address + int.from_bytes(code[2:], "little", signed=True)
    if code[1] == 0xE8:
        return _follow(image, place)
    if code[:2] == b"\xff\x15":
        function = _word_function(image, place)
        return [] if function is None else [function]
    return []


def _follow(image: CoreImage, target: int) -> list[int]:
    """Follow jumps at a function's start."""
    passed: list[int] = []
    for _ in range(_JUMPS_MAX):
        if not image.is_code(target):
            return []
        passed.append(target)
        code = image.read(target, 11)
        skip = 4 if code.startswith(_ENDBR) else 0
        body = code[skip:].removeprefix(b"\xf2")  # bnd
        end = target + len(code) - len(body)
        if body[:1] == b"\xe9" and len(body) >= 5:
            target = end + 5 + int.from_bytes(body[1:5], "little", signed=True)
        elif body[:2] == b"\xff\x25" and len(body) >= 6:
            slot = end + 6 + int.from_bytes(body[2:6], "little", signed=True)
            target = _word_function(image, slot) or 0
        else:
            break
    return passed


def _word_function(image: CoreImage, slot: int) -> int | None:
    value = image.word(slot)
    return None if value is None or not image.is_code(value) else value
