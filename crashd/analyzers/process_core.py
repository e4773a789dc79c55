"""The facts of one crashed process, out of its core: JSON for the daemon to judge and explain."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crashd.analyzers import instruction, messages
from crashd.analyzers.coreimage import CoreImage, FilePart
from crashd.analyzers.stacks import Stacks
from crashd.domain.elf.elfcore import CoreHead
from crashd.domain.elf.headers import Layout, split_notes
from crashd.domain.elf.modules import Module, find_modules
from crashd.edge.sandbox.modulefiles import ModuleFile
from crashd.errors import FormatError
from crashd.store.coreread import StoredCore, read_head

VERSION = 1
_NT_SIGINFO = 0x53494749
_SIGSYS = 31
_PROBLEMS_MAX = 20

PythonReader = Callable[[], tuple[list[dict[str, Any]], str | None]]
"""Gives the interpreter's stacks, or why there are none."""


@dataclass(frozen=True, slots=True)
class OpenedCore:
    """A core, and the files of its modules."""

    core: StoredCore
    raw_head: bytes
    image: CoreImage
    files: list[ModuleFile]

    @property
    def descriptors(self) -> list[int]:
        """All that has to stay open."""
        return [fd for file in self.files for fd in (file.fd, file.debug_fd) if fd is not None]


def open_core(fd: int, open_files: Callable[[list[Module]], list[ModuleFile]]) -> OpenedCore:
    """Open a stored core and what can be found of its modules' files.

    Raises:
        FormatError: it is no ELF core, or so short that it tells of no thread.

    """
    core = StoredCore(fd)
    raw, head = read_head(core)
    if not head.threads:
        raise FormatError(f"core tells of no thread: {'; '.join(head.problems)[:200]}")
    image = CoreImage(core, head)
    files = open_files(find_modules(head, image.read))
    image.add_files(
        [
            FilePart(mapped.start, mapped.end, mapped.offset_bytes, file.fd)
            for file in files
            if file.fd is not None
            for mapped in file.module.files
        ]
    )
    return OpenedCore(core, raw, image, files)


def analyse(opened: OpenedCore, read_python: PythonReader | None) -> dict[str, Any]:
    """Collect the facts; `read_python` reads the interpreter's stacks, where there is one."""
    started = time.process_time()
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
    out: dict[str, Any] = {
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
        "problems": [*head.problems, *problems, *more][:_PROBLEMS_MAX],
        "unpacked_bytes": opened.core.unpacked_bytes,
    }
    if read_python is not None:
        out["python"], problem = read_python()
        out["problems"] += [problem] if problem else []
    out["cpu_seconds"] = round(time.process_time() - started, 3)
    return out


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
