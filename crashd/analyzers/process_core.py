"""The native facts of a crashed process: JSON for the daemon to judge and explain."""

from collections.abc import Mapping
from typing import Any

from crashd.analyzers import instruction, messages
from crashd.analyzers.analyzer import Analyzer, OpenedCore
from crashd.analyzers.callers import follows_call
from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.handled import Handled, find_first, find_handled
from crashd.analyzers.stacks import FRAMES_MAX, Stacks
from crashd.domain.elf.auxv import AT_PHDR
from crashd.domain.elf.elfcore import IMAGE_MAX, CoreHead
from crashd.domain.elf.elfnotes import EM_386, EM_AARCH64, EM_X86_64, SigInfo, Thread
from crashd.domain.elf.headers import Layout, split_notes
from crashd.domain.elf.packagenote import parse_package_note
from crashd.domain.signals import SIGSEGV
from crashd.edge.sandbox.modulefiles import ModuleFile

VERSION = 1
_NT_SIGINFO = 0x53494749
_SIGSYS = 31
_SEGV_MAPERR = 1
_DIVISIONS = frozenset({"div", "idiv"})


class NativeFacts(Analyzer):
    """The facts that every core has: stacks, registers, the signal, mappings, and last words."""

    name = "native stacks"

    def applies(self) -> bool:
        """Return True: every core has native facts."""
        return True

    def prepare(self) -> int:
        """Import what only stacks of i386 programs need: no other analysis takes the time."""
        if self.opened.image.head.machine == EM_386:
            import crashd.analyzers.unwind386  # noqa: F401
        return 0

    def facts(self) -> dict[str, Any]:
        """Collect the facts."""
        opened = self.opened
        image, head = opened.image, opened.image.head
        stacks = Stacks(opened.raw_head, image, [file.module for file in opened.files])
        stacks.core.alternates = {file.module.start: file.alternate_fd for file in opened.files}
        problems = stacks.core.load((f.module, f.fd, f.debug_fd) for f in opened.files)
        threads = stacks.threads()
        loaded, more = stacks.load_debug_info(threads)
        if loaded:
            threads = stacks.threads()
        first = find_first(image, threads)
        if first is not None:
            threads[0]["crashed"], threads[first[0]]["crashed"] = False, True
            threads.insert(0, threads.pop(first[0]))
        frames = threads[0]["frames"] if threads else []
        handled = first[1] if first is not None else find_handled(image, frames)
        moment = _first_moment(opened, stacks, frames, handled)
        if handled is not None and handled.end is not None:
            threads[0]["end"] = None
        return {
            "version": VERSION,
            "machine": head.machine,
            "bits": head.bits,
            "threads": threads,
            "modules": _modules(opened.files, stacks, threads),
            **moment,
            "returned": _is_returned(image),
            "thread_signal": head.threads[0].signal,
            "messages": messages.collect(
                image,
                stacks.core.symbol_address,
                stacks.names.demangler.type,
                frames,
                stacks.names.go_panic,
            ),
            "package": _package(opened),
            "problems": [*head.problems, *opened.problems, *problems, *more, *_ends(threads)],
        }


def _is_returned(image: CoreImage) -> bool:
    """Return whether the crashed thread returned to a place without code: the word that was popped
    last is the program counter, and no call put a return address after it.
    """
    first = image.head.threads[0]
    if image.head.machine not in (EM_X86_64, EM_386) or None in (first.pc, first.sp):
        return False
    pc, sp = first.pc or 0, first.sp or 0
    if image.is_code(pc) or image.word(sp - image.head.bits // 8) != pc:
        return False
    caller = image.word(sp) or 0
    if image.is_code(caller) and not image.read(caller - 1, 1):
        return False  # the program's file is missing: there may be a call
    return not follows_call(image, caller)


def _ends(threads: list[dict[str, Any]]) -> list[str]:
    """Report why the crashed thread's stack ended early, unless the program itself found the stack
    overwritten.
    """
    frames, end = (threads[0]["frames"], threads[0]["end"]) if threads else ([], None)
    smashed = any("stack_chk_fail" in (frame["function"] or "") for frame in frames)
    if end is None or smashed or len(frames) >= FRAMES_MAX:
        return []
    return [f"the stack ends after {len(frames)} frames: {end}"]


def _first_moment(
    opened: OpenedCore, stacks: Stacks, frames: list[dict[str, Any]], handled: Handled | None
) -> dict[str, Any]:
    """Describe the moment of the crash: the signal, the registers, the instruction, and what is
    mapped where. If a handler had caught a signal, it is the moment of the first signal.
    """
    image, head = opened.image, opened.image.head
    first = head.threads[0]
    if handled is None:
        registers = stacks.registers()
        decoded = _instruction(image, first.pc, registers)
        given = head.siginfo or _missing_siginfo(image, first, decoded)
        return {
            "registers": registers,
            "instruction": decoded,
            "siginfo": None if given is None else _siginfo(opened.raw_head, head, given),
            "regions": _regions(image, first.pc, first.sp, given, decoded),
        }
    frame, info = handled.frame, handled.info
    del frames[len(frames) if handled.end is None else handled.end :]
    index = len(frames) if handled.index is None else handled.index
    if handled.index is None:
        frames += stacks.walk_from(frame.registers)[: max(0, FRAMES_MAX - index)]
    image.stack_pointers.append(frame.sp)
    decoded = _instruction(image, frame.pc, frame.registers)
    return {
        "registers": dict(frame.registers),
        "instruction": decoded,
        "siginfo": {
            **_signal_facts(info),
            "error_code": handled.error_code,
            **_refused_syscall(info, frame.registers, head.machine),
        },
        "regions": _regions(image, frame.pc, frame.sp, info, decoded),
        "handled": {
            "signal": head.siginfo.signal if head.siginfo else info.signal,
            "code": head.siginfo.code if head.siginfo else info.code,
            "frame": index,
            "again": handled.again,
        },
    }


def _package(opened: OpenedCore) -> dict[str, str] | None:
    """Return the package that the executable says it is from."""
    phdr = opened.image.head.auxv.get(AT_PHDR, -1)
    starts = [f.module.start for f in opened.files if f.module.start <= phdr < f.module.end]
    return parse_package_note(opened.image.read(starts[0], IMAGE_MAX)) if starts else None


def _modules(
    files: list[ModuleFile], stacks: Stacks, threads: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Describe the modules, and which of them are on a stack."""
    used = {frame["start"] for thread in threads for frame in thread["frames"]}
    return [
        {
            "name": _text(file.module.name),
            "start": file.module.start,
            "end": file.module.end,
            "build_id": file.module.build_id,
            "deleted": file.module.deleted,
            "problem": file.problem,
            "debug_info": stacks.core.has_debug_info(file.module.start),
            "used": file.module.start in used,
        }
        for file in files
    ]


def _text(raw: bytes) -> str:
    return raw[:4096].decode("utf-8", "backslashreplace")


def _instruction(
    image: CoreImage, pc: int | None, registers: Mapping[str, int]
) -> dict[str, Any] | None:
    if pc is None:
        return None
    code = image.read(pc, instruction.INSTRUCTION_MAX)
    decoded = instruction.decode(image.head.machine, code, pc, registers, image.head.bits)
    if decoded is not None:
        target = decoded.pop("target", None)
        at = decoded.pop("target_at", None)
        decoded["target"] = image.word(at) if at is not None else target
        if decoded["mnemonic"] in _DIVISIONS and decoded["access"]:
            decoded["target"] = _operand(image, decoded["access"][0])
    return decoded


def _operand(image: CoreImage, access: Mapping[str, Any]) -> int | None:
    """Read what an instruction reads from memory."""
    at, size = access["address"], access["size"]
    raw = image.read(at, size) if at is not None and 0 < size <= 8 else b""
    return int.from_bytes(raw, image.head.byteorder) if raw and len(raw) == size else None


def _missing_siginfo(
    image: CoreImage, first: Thread, decoded: Mapping[str, Any] | None
) -> SigInfo | None:
    """Return the fault of a SIGSEGV in a core without siginfo (QEMU's), if the instruction, or the
    memory that it accesses, is not mapped.
    """
    if first.signal != SIGSEGV or first.pc is None:
        return None
    places = [a["address"] for a in decoded["access"]] if decoded is not None else []
    for address in (first.pc, *places):
        if address is not None and image.segment(address) is None:
            return SigInfo(SIGSEGV, _SEGV_MAPERR, 0, address, None, None)
    return None


def _signal_facts(info: SigInfo) -> dict[str, Any]:
    return {
        "signal": info.signal,
        "code": info.code,
        "address": info.address,
        "sender_pid": info.sender_pid,
        "sender_uid": info.sender_uid,
    }


def _siginfo(raw: bytes, head: CoreHead, info: SigInfo) -> dict[str, Any]:
    out = _signal_facts(info)
    if info.signal == _SIGSYS and info.code == 1:
        out |= _syscall(raw, head)
    return out


def _syscall(raw: bytes, head: CoreHead) -> dict[str, Any]:
    """Read si_syscall and si_arch, and the call's name (asm-generic/siginfo.h, _sigsys)."""
    layout = Layout(head.machine, head.bits, head.byteorder)
    at = 24 if head.bits == 64 else 16
    for offset, size in head.notes[:4]:
        for name, kind, desc, _ in split_notes(raw[offset : offset + size], layout):
            if name == b"CORE" and kind == _NT_SIGINFO and len(desc) >= at + 8:
                number, arch = layout.struct("iI").unpack_from(desc, at)
                return {"syscall": number, "syscall_name": _syscall_name(arch, number)}
    return {}


_SYSCALL_NUMBERS = {EM_X86_64: ("rax", 0xC000003E), EM_AARCH64: ("x8", 0xC00000B7)}
"""The register that holds the number again when a handler for SIGSYS runs, and AUDIT_ARCH_*."""


def _refused_syscall(info: SigInfo, registers: Mapping[str, int], machine: int) -> dict[str, Any]:
    if (info.signal, info.code) != (_SIGSYS, 1) or machine not in _SYSCALL_NUMBERS:
        return {}
    register, arch = _SYSCALL_NUMBERS[machine]
    number = registers.get(register)
    if number is None:
        return {}
    return {"syscall": number, "syscall_name": _syscall_name(arch, number)}


def _syscall_name(arch: int, number: int) -> str | None:
    from crashd.edge.sandbox.confine import syscall_name

    return syscall_name(arch, number)


def _regions(
    image: CoreImage,
    pc: int | None,
    sp: int | None,
    info: SigInfo | None,
    decoded: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Describe what is mapped at the program counter, the stack pointer, the address of the fault,
    and at the place from which a pointer of the allocator in freed memory would come.

    glibc (2.32) stores a link as the next chunk's address, exclusive-or the link's own page number.
    The last link in a list therefore is just that page number (malloc.c, PROTECT_PTR).
    """
    access = decoded["access"] if decoded else []
    base = next((a["base_value"] for a in access if a["base_value"]), None)
    addresses = {
        "pc": pc,
        "sp": sp,
        "fault": info.address if info else None,
        "link": base << 12 if base is not None and base < 1 << 36 else None,
    }
    return {name: image.describe(at) for name, at in addresses.items() if at is not None}
