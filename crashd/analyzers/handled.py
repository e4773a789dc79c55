"""A signal that was being handled when the process died, or that its handler raised again: the
signal's own siginfo and registers, which show what happened first.

Runtimes catch a fault, report it, and then abort, so the signal that kills the process is a
consequence. The kernel's frame for the handler still lies on the stack.

The module is one idea: each function is a way in which the first signal survives the handler.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from crashd.analyzers import gofault, instruction
from crashd.analyzers.callers import follows_call, is_outermost
from crashd.analyzers.coreimage import PF_R, PF_W, CoreImage
from crashd.domain.elf.elfnotes import EM_386, EM_AARCH64, EM_X86_64, SigInfo
from crashd.domain.elf.sigframe import (
    FRAME_MAX,
    INFO_AT,
    SignalFrame,
    caught_signal,
    frame_address,
    is_restorer,
    parse_frame,
    saved_patterns,
)
from crashd.domain.signals import CORE_SIGNALS, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGQUIT, SIGSEGV

_SCAN_BYTES = 256 << 10
_SEARCHED_BYTES_MAX = 32 << 20
_CANDIDATES_MAX = 100_000
"""What may be a fault's siginfo is judged in 7 us; an array of small numbers has three million."""
_CODE_BYTES = 16
_BELOW_BYTES = 32 << 10
"""Largest distance from the stack pointer down to the frame of a handler that has returned: the red
zone and the processor's extended state (11 KiB with AMX) lie between.
"""
# include/uapi/asm-generic/siginfo.h
_SEGV_MAPERR, _SEGV_ACCERR, _FPE_INTDIV, _ILL_ILLOPN, _SI_KERNEL = 1, 2, 1, 2, 0x80
_BUS_ADRERR = 2
_ERROR_PRESENT, _ERROR_WRITE = 1, 2  # X86_PF_* (arch/x86/include/asm/trap_pf.h)
_SYSCALLS = {
    EM_386: bytes.fromhex("cd80"),
    EM_X86_64: bytes.fromhex("0f05"),
    EM_AARCH64: bytes.fromhex("010000d4"),
}


# arch/x86/include/asm/trapnr.h
_DIVIDE, _INVALID_OPCODE, _GENERAL_PROTECTION, _PAGE_FAULT = 0, 6, 13, 14
_RESTORERS = ("runtime.sigreturn", "__restore_rt")
_ABORT_DEPTH = 4
"""Frames from the system call that sends SIGABRT to abort() itself, at most."""
_HANDLER_DEPTH = 8
"""Frames of a handler that raises a signal, at most."""
_SI_TKILL = -6
_FAULTS = frozenset({SIGSEGV, SIGBUS, SIGFPE, SIGILL})
_NEAR = 64
_RED_ZONE = 128
_ENCODED = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip",
)  # fmt: skip
"""Registers in the order in which instructions encode them."""
_FAULT_INFO = re.compile(rb"[\x04\x07\x08\x0b]\0{7}[\x01-\x08\x80]\0{3}", re.DOTALL)
"""The start of a siginfo_t of a fault: signal, errno and code."""


@dataclass(frozen=True, slots=True)
class Handled:
    """The signal that came first."""

    info: SigInfo
    error_code: int | None
    """The processor's error code, if the signal is a page fault (x86)."""
    frame: SignalFrame
    index: int | None
    """Index of the crashed thread's frame at which the interrupted code begins; None if unknown."""
    again: bool
    """Whether the handler raised the signal again and then returned."""
    end: int | None = None
    """Number of the handler's own frames, if those after them are to be walked again."""


def find_handled(image: CoreImage, frames: Sequence[Mapping[str, Any]]) -> Handled | None:
    """Find the first signal that is being handled on the crashed thread's stack, or the one that
    was raised again. Only signals that dump core count.
    """
    head = image.head
    if head.machine not in _SYSCALLS or head.siginfo is None:
        return None
    if head.bits != 64 and head.machine != EM_386:
        return None
    found = _thrown_by_go(image, frames) if head.bits == 64 else None
    found = found or _walked(image, frames)
    if found is None and not _is_whole(frames):
        found = _scanned(image, frames)
    if found is None and head.siginfo.signal == SIGABRT:
        found = _redirected(image, frames)
    if found is None and head.siginfo.code <= 0 and head.siginfo.signal in CORE_SIGNALS:
        found = _raised_again(image)
    return found


def find_first(
    image: CoreImage, threads: Sequence[Mapping[str, Any]]
) -> tuple[int, Handled] | None:
    """Return the index of the thread whose signal came first, and that signal, if the first thread
    only followed it.

    Go's handler shows all threads by sending SIGQUIT to each in turn, and the last one aborts. The
    thread of the first signal waits in its handler meanwhile (runtime.sighandler). Other handlers
    only pass a fault on to the main thread (Emacs).
    """
    followed = _in_go(image, threads[0]) if threads else None
    if followed is None:
        return _passed_on(image, threads)
    if (followed.info.signal, followed.info.code) != (SIGQUIT, 0):
        return None
    for index, thread in enumerate(threads[1:], 1):
        found = _in_go(image, thread)
        if found is not None and found.info.signal != SIGQUIT:
            return index, found
    return None


def _passed_on(
    image: CoreImage, threads: Sequence[Mapping[str, Any]]
) -> tuple[int, Handled] | None:
    """Return the thread whose fault was sent on to the first thread, and waits in its handler."""
    last = image.head.siginfo
    if image.head.machine not in _SYSCALLS or image.head.bits != 64:
        return None
    if last is None or last.code != _SI_TKILL or last.signal not in _FAULTS:
        return None
    for index, thread in enumerate(threads[1:], 1):
        found = _walked(image, thread["frames"], thread["tid"])
        if found is not None and (found.info.signal, found.info.code > 0) == (last.signal, True):
            return index, replace(found, again=False)
    return None


def _in_go(image: CoreImage, thread: Mapping[str, Any]) -> Handled | None:
    """Find the first signal that Go's handler handles on a thread."""
    inside = False
    for index, frame in enumerate(thread["frames"]):
        name = frame["function"] or ""
        inside = inside or name.startswith("runtime.sighandler")
        # with cgo, libc sets the handler and so names what ends it
        if inside and name.startswith(_RESTORERS) and frame["sp"] is not None:
            at = frame_address(image.head.machine, frame["sp"])
            found = _parse(image, at)
            return None if found is None else replace(found, end=index + 1)
    return None


def _thrown_by_go(image: CoreImage, frames: Sequence[Mapping[str, Any]]) -> Handled | None:
    """Find the fault for which Go's runtime gave up; the frame of its handler is gone."""
    index = gofault.thrower(frames)
    if index is None:
        return None
    pc, sp = frames[index]["pc"], frames[index]["sp"] or 0
    for start, size in _writable(image):
        info = gofault.find_fault(image.read(start, size), pc)
        if info is not None:
            frame = SignalFrame(info, {"rip": pc, "rsp": sp}, pc, sp, None, 0, info.address or 0)
            return Handled(info, None, frame, index, again=False)
    return _called_null(image, index, pc, sp)


def _called_null(image: CoreImage, index: int, pc: int, sp: int) -> Handled | None:
    """Return the fault of C code that called NULL, if exactly one goroutine has such a fault; `sp`
    is the stack pointer of the caller, at `pc`, after the return.
    """
    if not follows_call(image, pc) or image.word(sp - 8) != pc:
        return None
    kept = (
        start + at
        for start, size in _writable(image)
        for at in gofault.find_null_calls(image.read(start, size))
    )
    if len(list(islice(kept, 2))) != 1:
        return None
    info = SigInfo(SIGSEGV, _SEGV_MAPERR, 0, 0, None, None)
    frame = SignalFrame(info, {"rip": 0, "rsp": sp - 8}, 0, sp - 8, None, 0, 0)
    return Handled(info, None, frame, None, again=False, end=index)


def _parse(image: CoreImage, address: int) -> Handled | None:
    frame = parse_frame(image.read(address, FRAME_MAX), image.head.machine)
    return None if frame is None else _judged(image, frame, None)


def _judged(
    image: CoreImage,
    frame: SignalFrame,
    index: int | None,
    *,
    again: bool = False,
    signal: int | None = None,
) -> Handled | None:
    """Return the signal of a frame; `signal` is its number, if that is known."""
    info = frame.info
    inferred = _inferred(image, frame) if signal is None or signal in _FAULTS else None
    if info is not None and info.signal in _FAULTS and info.code > 0 and inferred is None:
        # left over, too, where a system call was interrupted, which does not fault
        info = None if _sends(image, frame.pc) else info
    if inferred is not None and (info is None or info.address != inferred.address):
        info = inferred  # old bytes in the place of the siginfo may look like one
    if info is None or info.signal not in CORE_SIGNALS:
        return None
    is_page_fault = info.address is not None and frame.trap == _PAGE_FAULT
    error = frame.error_code if is_page_fault else None
    return Handled(info, error, frame, index, again)


def _inferred(image: CoreImage, frame: SignalFrame) -> SigInfo | None:
    """Return the signal of a handler without SA_SIGINFO, if the interrupted instruction can have
    raised the processor's last exception.
    """
    code = image.read(frame.pc, instruction.INSTRUCTION_MAX)
    machine, registers = image.head.machine, frame.registers
    decoded = instruction.decode(machine, code, frame.pc, registers, image.head.bits)
    access = decoded["access"] if decoded is not None else []
    mnemonic = (decoded["mnemonic"] if decoded is not None else None) or ""
    fault = frame.fault_address
    touched = any(a["address"] is not None and 0 <= fault - a["address"] < _NEAR for a in access)
    if frame.trap in (_PAGE_FAULT, None) and (touched or fault == frame.pc):
        if _is_past_end(image, frame):
            return SigInfo(SIGBUS, _BUS_ADRERR, 0, fault, None, None)
        mapped = image.segment(fault) is not None
        return SigInfo(SIGSEGV, _SEGV_ACCERR if mapped else _SEGV_MAPERR, 0, fault, None, None)
    if frame.trap == _GENERAL_PROTECTION and (access or not code):
        return SigInfo(SIGSEGV, _SI_KERNEL, 0, None, None, None)
    if frame.trap == _DIVIDE and mnemonic in ("div", "idiv"):
        return SigInfo(SIGFPE, _FPE_INTDIV, 0, frame.pc, None, None)
    if frame.trap == _INVALID_OPCODE and (mnemonic.startswith("ud") or not mnemonic):
        return SigInfo(SIGILL, _ILL_ILLOPN, 0, frame.pc, None, None)
    return None


def _is_past_end(image: CoreImage, frame: SignalFrame) -> bool:
    """Return whether a file's page was missing although its mapping permits the access: the file is
    too short. A handler without SA_SIGINFO does not know its signal's number otherwise (x86).
    """
    segment = image.segment(frame.fault_address)
    if frame.trap != _PAGE_FAULT or frame.error_code & _ERROR_PRESENT or segment is None:
        return False
    needed = PF_W if frame.error_code & _ERROR_WRITE else PF_R
    return bool(segment.flags & needed and image.file_name(frame.fault_address))


def _is_whole(frames: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the walk reached the function that starts a thread, or crossed a handler."""
    last = frames[-1]["function"] if frames else None
    return is_outermost(last) or any(frame["interrupted"] for frame in frames[1:])


def _walked(
    image: CoreImage, frames: Sequence[Mapping[str, Any]], tid: int | None = None
) -> Handled | None:
    """Find a signal frame that the walk crossed: the walk continued from its registers. By default
    the frames are of the first thread.
    """
    found = None
    threads = image.head.threads
    blocked = next((t.blocked for t in threads if tid in (None, t.tid)), 0)
    for index, frame in enumerate(frames[:-1]):
        if frame["sp"] is None or not frames[index + 1]["interrupted"]:
            continue
        at = frame_address(image.head.machine, frame["sp"])
        crossed = parse_frame(image.read(at, FRAME_MAX), image.head.machine)
        if crossed is None:
            blocked = 0
            continue
        signal, blocked = caught_signal(crossed, blocked), crossed.blocked
        if signal is not None and crossed.info is not None and crossed.info.signal != signal:
            crossed = replace(crossed, info=None)  # left over from an earlier signal
        handled = _judged(image, crossed, index + 1, signal=signal)
        if handled is None:
            handled = _unrecorded(image, crossed, frames, index + 1)
        if handled is not None and handled.frame.pc == frames[index + 1]["pc"]:
            found = handled  # the last one is the first signal
    if found is not None and _sends(image, frames[0]["pc"]):
        again = _is_same(image.head.siginfo, found.info)
        found = replace(found, again=again)
    return found


def _unrecorded(
    image: CoreImage, frame: SignalFrame, frames: Sequence[Mapping[str, Any]], index: int
) -> Handled | None:
    """Return the signal of a handler without SA_SIGINFO, for which the kernel leaves no siginfo,
    that interrupted a system call.

    In abort() it is abort()'s own SIGABRT. Elsewhere, if the handler ended the process by the
    signal of a fault, the same signal came from outside: a system call does not fault.
    """
    if frame.info is not None or not _sends(image, frame.pc):
        return None
    names = [frame["function"] or "" for frame in frames[index : index + _ABORT_DEPTH]]
    if "abort" in names:
        info = SigInfo(SIGABRT, _SI_TKILL, 0, None, image.head.threads[0].tid, None)
        return Handled(info, None, frame, index, again=False)
    last = image.head.siginfo
    if last is None or last.code > 0 or last.signal not in _FAULTS or index > _HANDLER_DEPTH:
        return None
    return Handled(SigInfo(last.signal, 0, 0, None, None, None), None, frame, index, again=False)


def _sends(image: CoreImage, pc: int) -> bool:
    """Return whether a system call is right before an address: where a signal that a thread sends
    to itself arrives.
    """
    call = _SYSCALLS[image.head.machine]
    return image.read(pc - len(call), len(call)) == call


def _is_same(last: SigInfo | None, first: SigInfo) -> bool:
    """Return whether a handler sent its own siginfo again (rt_tgsigqueueinfo)."""
    if last is None or last.code <= 0:
        return False
    return (last.signal, last.code, last.address) == (first.signal, first.code, first.address)


def _scanned(image: CoreImage, frames: Sequence[Mapping[str, Any]]) -> Handled | None:
    """Find a signal frame above the end of the walk, by the return address at its start."""
    if image.head.machine != EM_X86_64:
        return None  # the return address is in a register there
    start = next((f["sp"] for f in reversed(frames) if f["sp"] is not None), None)
    if start is None:
        return None
    if is_restorer(image.read(frames[-1]["pc"], _CODE_BYTES), image.head.machine):
        start = frame_address(image.head.machine, start)  # the interrupted code was at address 0
    start &= ~7
    raw = image.read(start, _SCAN_BYTES)
    known: dict[int, bool] = {}
    for at in range(0, len(raw) - 7, 8):
        value = int.from_bytes(raw[at : at + 8], "little")
        if value < 4096 or value >> 47:
            continue
        if value not in known:
            known[value] = image.is_code(value) and is_restorer(
                image.read(value, _CODE_BYTES), image.head.machine
            )
        if known[value] and (found := _parse(image, start + at)) is not None:
            return found
    return None


def _redirected(image: CoreImage, frames: Sequence[Mapping[str, Any]]) -> Handled | None:
    """Find the frame of a handler that has returned into a function which then aborted (Mono): the
    handler changed the frame's pc and sp, and put the interrupted pc where it looks like a return
    address. But no call precedes it.
    """
    if image.head.machine != EM_X86_64:
        return None
    for index in range(1, len(frames)):
        pc, before = frames[index]["pc"], frames[index - 1]
        if pc == before["pc"] or frames[index]["interrupted"] or follows_call(image, pc):
            continue
        if is_restorer(image.read(pc, _CODE_BYTES), image.head.machine) or _is_gos(before):
            return None
        for at in islice(_fault_frames(image), _CANDIDATES_MAX):
            found = _parse(image, at)
            if found is not None and image.word(found.frame.sp) == pc:
                frame = _before_redirection(image, found.frame, pc)
                return replace(found, frame=frame, end=index)
        return None
    return None


def _fault_frames(image: CoreImage) -> Iterator[int]:
    """Yield where the frame of a fault's handler may lie."""
    for start, size in _writable(image):
        for match in _FAULT_INFO.finditer(image.read(start, size)):
            yield start + match.start() - INFO_AT


def _is_gos(frame: Mapping[str, Any]) -> bool:
    return (frame["function"] or "").startswith("runtime.")


def _before_redirection(image: CoreImage, frame: SignalFrame, pc: int) -> SignalFrame:
    """Return the interrupted registers: from the copy that rdi points to (MonoContext, in the
    processor's order), or else without rdi and with the stack pointer back over the red zone.
    """
    raw = image.read(frame.registers.get("rdi", 0), 8 * len(_ENCODED))
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    copied = dict(zip(_ENCODED, words, strict=False))
    if copied.get("rip") == pc:
        return replace(frame, pc=pc, sp=copied["rsp"], registers={**frame.registers, **copied})
    places = [frame.sp + 8 + moved for moved in (_RED_ZONE - 8, _RED_ZONE, 0)]
    sp = next((at for at in places if follows_call(image, image.word(at) or 0)), places[0])
    kept = {name: value for name, value in frame.registers.items() if name != "rdi"}
    return replace(frame, pc=pc, sp=sp, registers={**kept, "rip": pc, "rsp": sp})


def _raised_again(image: CoreImage) -> Handled | None:
    """Find the frame of a handler that raised its own signal, which was blocked until it returned.

    The process then dies where the first signal arrived. The frame with the same registers still
    lies below the stack pointer, or on the alternate stack. Where that is a system call, which does
    not fault, the signal came from outside.
    """
    machine, first, last = image.head.machine, image.head.threads[0], image.head.siginfo
    if first.pc is None or first.sp is None or last is None:
        return None
    in_call = _sends(image, first.pc)
    if in_call and last.signal not in _FAULTS:
        return None  # it was in kill(2) or a similar call, not in a handler
    patterns = saved_patterns(machine, first.pc, first.sp)
    stack = image.segment(first.sp)
    below = max(first.sp - _BELOW_BYTES, stack.vaddr if stack is not None else first.sp)
    for start, size in [(below, first.sp - below), *_writable(image)]:
        memory = image.read(start, size)
        for raw, inside in patterns:
            at = memory.find(raw)
            found = _again(image, start + at - inside, in_call=in_call) if at >= 0 else None
            if found is not None:
                return found
    return None


def _again(image: CoreImage, address: int, *, in_call: bool) -> Handled | None:
    """Return the signal whose handler raised it again, if its frame is at an address."""
    first, last = image.head.threads[0], image.head.siginfo
    frame = parse_frame(image.read(address, FRAME_MAX), image.head.machine)
    if frame is None or frame.sp != first.sp or last is None:
        return None
    if (found := _judged(image, frame, 0, again=True)) is not None:
        return found
    if in_call and frame.info is None:
        return Handled(SigInfo(last.signal, 0, 0, None, None, None), None, frame, 0, again=True)
    return None


def _writable(image: CoreImage) -> Iterator[tuple[int, int]]:
    """Yield writable memory, small segments first, because an alternate stack is usually small."""
    left = _SEARCHED_BYTES_MAX
    for segment in sorted(image.segments, key=lambda s: s.filesz):
        if segment.flags & PF_W and 0 < segment.filesz <= left:
            left -= segment.filesz
            yield segment.vaddr, segment.filesz
