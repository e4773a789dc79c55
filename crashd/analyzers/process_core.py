"""The native facts of a crashed process: JSON for the daemon to judge and explain."""

from collections.abc import Mapping
from typing import Any

from crashd.analyzers import instruction, messages
from crashd.analyzers.analyzer import Analyzer
from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.stacks import Stacks
from crashd.domain.elf.elfcore import CoreHead
from crashd.domain.elf.headers import Layout, split_notes
from crashd.edge.sandbox.modulefiles import ModuleFile

VERSION = 1
_NT_SIGINFO = 0x53494749
_SIGSYS = 31


class NativeFacts(Analyzer):
    """What every core has: stacks, registers, the signal, mappings, and last words."""

    name = "native stacks"

    def applies(self) -> bool:
        """Return true."""
        return True

    def facts(self) -> dict[str, Any]:
        """Collect the facts."""
        opened = self.opened
        image, head = opened.image, opened.image.head
        stacks = Stacks(opened.raw_head, image, [file.module for file in opened.files])
        problems = stacks.load((f.module, f.fd, f.debug_fd) for f in opened.files)
        threads = stacks.threads()
        loaded, more = stacks.load_debug_info(threads)
        if loaded:
            threads = stacks.threads()
        registers = stacks.registers()
        decoded = _instruction(image, head, registers)
        frames = threads[0]["frames"] if threads else []
        return {
            "version": VERSION,
            "machine": head.machine,
            "bits": head.bits,
            "threads": threads,
            "modules": _modules(opened.files, stacks, threads),
            "registers": registers,
            "instruction": decoded,
            "siginfo": _siginfo(opened.raw_head, head),
            "regions": _regions(image, head, decoded),
            "messages": messages.collect(
                image, stacks.symbol_address, stacks.demangler.type, frames, stacks.go_panic
            ),
            "problems": [*head.problems, *problems, *more],
        }


def _modules(
    files: list[ModuleFile], stacks: Stacks, threads: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Tell of the modules; those on no stack in short."""
    used = {frame["start"] for thread in threads for frame in thread["frames"]}
    return [
        {
            "name": _text(file.module.name),
            "start": file.module.start,
            "end": file.module.end,
            "build_id": file.module.build_id,
            "deleted": file.module.deleted,
            "problem": file.problem,
            "debug_info": stacks.has_debug_info(file.module.start),
            "used": file.module.start in used,
        }
        for file in files
    ]


def _text(raw: bytes) -> str:
    return raw[:4096].decode("utf-8", "backslashreplace")


def _instruction(
    image: CoreImage, head: CoreHead, registers: Mapping[str, int]
) -> dict[str, Any] | None:
    pc = head.threads[0].pc if head.threads else None
    if pc is None:
        return None
    code = image.read(pc, instruction.INSTRUCTION_MAX)
    return instruction.decode(head.machine, code, pc, registers, head.bits)


def _siginfo(raw: bytes, head: CoreHead) -> dict[str, Any] | None:
    info = head.siginfo
    if info is None:
        return None
    out: dict[str, Any] = {
        "signal": info.signal,
        "code": info.code,
        "address": info.address,
        "sender_pid": info.sender_pid,
        "sender_uid": info.sender_uid,
    }
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


def _syscall_name(arch: int, number: int) -> str | None:
    from crashd.edge.sandbox.confine import syscall_name

    return syscall_name(arch, number)


def _regions(image: CoreImage, head: CoreHead, decoded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Tell what is at the program counter, the stack pointer, the address of the fault, and where a
    pointer would come from that the allocator left in freed memory.

    glibc (2.32) keeps its links as the next one's address, exclusive-or the page of its own: of the
    last in a list nothing but that page is there (malloc.c, PROTECT_PTR).
    """
    first = head.threads[0] if head.threads else None
    access = decoded["access"] if decoded else []
    base = next((a["base_value"] for a in access if a["base_value"]), None)
    addresses = {
        "pc": first.pc if first else None,
        "sp": first.sp if first else None,
        "fault": head.siginfo.address if head.siginfo else None,
        "link": base << 12 if base is not None and base < 1 << 36 else None,
    }
    return {name: image.describe(at) for name, at in addresses.items() if at is not None}
