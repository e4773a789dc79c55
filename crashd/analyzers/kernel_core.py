"""What a kernel was doing when it died: the stack of the task that panicked, with lines and locals,
and each CPU's task; by drgn, from the dump and the kernel's own vmlinux.

The whole dump is hostile: lists in it may have no end, and pointers may lead anywhere. So every
walk has a limit, and the only pointers followed for locals are those to text, for a few bytes.
"""

import contextlib
import ctypes
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import drgn

# Import everything of drgn that is used before the process is sealed: afterwards it has no files.
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.percpu import per_cpu_ptr
from drgn.helpers.linux.sched import cpu_curr, task_cpu

from crashd.analyzers.kernel_log import OpenedDump, open_dump
from crashd.analyzers.kernelmodule import ModuleSymbols
from crashd.errors import FormatError, reason_of

VERSION = 1
FRAMES_MAX = 128
CPUS_MAX = 8192
MODULES_MAX = 1000
LOCALS_FRAMES = 16
"""Frames whose locals are shown: panic() and what led to it are among the first."""
LOCALS_MAX = 24
"""Locals shown of one frame."""
VALUE_MAX = 160
"""Characters of a value."""
_OBJECT_BYTES_MAX = 4096
_STRING_MAX = 96
_PAGE = 4096
_PROBLEMS_MAX = 20
_NAME_MAX = 400
_MODULES_CPU_SECONDS = 5.0
_CPU_SECONDS = 20.0
"""After this much CPU time, skip the remaining CPUs and locals."""
# linux/elf.h; arch/x86/include/asm/elf.h and include/linux/elfcore.h of 64 bits
_NT_PRSTATUS = 1
_NOTE = struct.Struct("<III8s")
_PR_PID, _PR_REG = 32, 112
_PRSTATUS_BYTES = 336
_ERRORS = (
    drgn.FaultError,
    drgn.ObjectAbsentError,
    drgn.OutOfBoundsError,
    AttributeError,
    LookupError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """The descriptors that are read; they stay the caller's."""

    dump: Sequence[int]
    """Of a split dump several."""
    vmlinux: int
    modules: Mapping[str, int] = field(default_factory=dict)
    """Files of modules by the modules' names."""


def analyse(
    files: KernelFiles, build_id: str, library: ctypes.CDLL | None = None
) -> dict[str, Any]:
    """Read a dump with its vmlinux, which has that build-id, and the files of its modules;
    `library` (load_kdumpfile) reads a split one.
    """
    try:
        opened = open_dump(files.dump, build_id, library)
        return _KernelCore(opened, files.vmlinux, files.modules).describe()
    except FormatError as e:
        return {"failed": reason_of(e)}


class _KernelCore:
    """A drgn program over a kernel's dump."""

    def __init__(self, opened: OpenedDump, vmlinux_fd: int, modules: Mapping[str, int]) -> None:
        self._program = opened.program
        self._registers = opened.registers
        self._problems: list[str] = []
        self._symbols: dict[str, ModuleSymbols] = {}
        self._load(vmlinux_fd)
        self._load_modules(modules)

    def _load(self, vmlinux_fd: int) -> None:
        try:
            module = self._program.main_module()
        except LookupError:
            module = self._first_module()
        try:
            module.try_file("vmlinux", fd=os.dup(vmlinux_fd))
        except Exception as e:  # boundary: drgn has no narrower class for what elfutils refuses
            raise FormatError(f"the vmlinux cannot be used: {_text(e)}") from e
        if module.debug_file_status != drgn.ModuleFileStatus.HAVE:
            raise FormatError("the vmlinux is of another kernel, or has no debug information")

    def _load_modules(self, files: Mapping[str, int]) -> None:
        """Let drgn know the loaded modules, and give it the files that there are.

        Between the kernel itself, which comes first, and the first module, drgn reads the vmlinux,
        which takes time that does not depend on the dump. A slow machine may take as long for the
        modules.
        """
        started, first = time.process_time(), None
        number = 0
        try:
            for module, _ in self._program.loaded_modules():
                if isinstance(module, drgn.MainModule):
                    continue
                now = time.process_time()
                first = now if first is None else first
                allowed = max(_MODULES_CPU_SECONDS, first - started)
                if number >= MODULES_MAX or now - first > allowed:
                    self._problems.append(f"only {number} modules were looked at")
                    return
                fd = files.get(module.name)
                if fd is not None:
                    self._load_module(module, fd)
                number += 1
        except Exception as e:  # boundary: as below; stacks need no module
            self._problems.append(f"the kernel's modules: {_text(e)}")

    def _load_module(self, module: drgn.Module, fd: int) -> None:
        try:
            module.try_file(module.name, fd=os.dup(fd))
            if module.debug_file_status != drgn.ModuleFileStatus.HAVE:
                why = "its file is of another build, or has no debug information"
                self._problems.append(f"module {module.name}: {why}")
        except Exception as e:  # boundary: as below
            self._problems.append(f"module {module.name}: {_text(e)}")

    def _first_module(self) -> drgn.Module:
        """Let drgn create the kernel's own module, which its list of modules begins with."""
        try:
            for module, _ in self._program.loaded_modules():
                if isinstance(module, drgn.MainModule):
                    return module
                break
        except Exception as e:  # boundary: as above
            raise FormatError(f"the dump's kernel is not known: {_text(e)}") from e
        raise FormatError("the dump's kernel is not known")

    def describe(self) -> dict[str, Any]:
        """Collect the facts."""
        started = time.process_time()
        deadline = started + _CPU_SECONDS
        crashed = self._crashed(deadline)
        cpus = list(self._cpus(deadline))
        if not crashed["frames"] and not cpus:
            raise FormatError("; ".join(self._problems)[:400] or "the dump has no task")
        return {
            "version": VERSION,
            **crashed,
            "cpus": cpus,
            "problems": self._problems[:_PROBLEMS_MAX],
            "cpu_seconds": round(time.process_time() - started, 3),
        }

    def _crashed(self, deadline: float) -> dict[str, Any]:
        """Describe the task that panicked."""
        out: dict[str, Any] = {"tid": None, "comm": None, "frames": [], "cut": False}
        try:
            thread = self._program.crashed_thread()
            out["tid"] = int(thread.tid)
            with contextlib.suppress(*_ERRORS):
                out["comm"] = _comm(thread.object)
            trace = self._trace(thread.object)
        except Exception as e:  # boundary: as above; what else is known stays
            self._problems.append(f"the stack of the task that panicked: {_text(e)}")
            return out
        for number, frame in enumerate(trace):
            if number >= FRAMES_MAX:
                out["cut"] = True
                break
            try:
                pc = int(frame.pc)
            except LookupError:
                break
            if not self._is_kernel(pc):
                break  # the program that made the system call is not in the dump's vmlinux
            told = self._frame(frame, pc)
            if number < LOCALS_FRAMES and time.process_time() < deadline:
                told["locals"] = list(self._locals(frame))
            out["frames"].append(told)
        return out

    def _trace(self, task: drgn.Object) -> drgn.StackTrace:
        """Walk a task's stack.

        If drgn finds no registers of the task's CPU, start from those that the kernel itself saved
        when it died: in a hypervisor's dump, drgn looks only in the notes.
        """
        try:
            return self._program.stack_trace(task)
        except LookupError:
            registers = self._saved_registers(task)
            if registers is None:
                raise
            return self._program.stack_trace(registers)

    def _saved_registers(self, task: drgn.Object) -> drgn.Object | None:
        """Read `crash_notes` (kernel/crash_core.c) of a task's CPU: an ELF note with a struct
        elf_prstatus of that task.
        """
        platform = self._program.platform
        if platform is None or platform.arch != drgn.Architecture.X86_64:
            return None  # on other machines pt_regs differs from the registers in the note
        status = self._note_of(task) or self._note_in_memory(task)
        if status is None:
            return None
        return drgn.Object.from_bytes_(self._program, "struct pt_regs", status[_PR_REG:])

    def _note_of(self, task: drgn.Object) -> bytes | None:
        """Return the struct elf_prstatus of a task, or of its CPU, from the dump's own notes; a
        hypervisor numbers them by CPU, the kernel by task.
        """
        pid, cpu = int(task.pid), int(task_cpu(task))
        whole = [raw for raw in self._registers if len(raw) >= _PRSTATUS_BYTES]
        for raw in whole:
            if pid and int.from_bytes(raw[_PR_PID:][:4], "little") == pid:
                return raw
        by_cpu = cpu < len(whole) and len(whole) == len(self._registers)
        if by_cpu and int.from_bytes(whole[cpu][_PR_PID:][:4], "little") in (0, cpu + 1):
            return whole[cpu]
        return None

    def _note_in_memory(self, task: drgn.Object) -> bytes | None:
        note = per_cpu_ptr(self._program["crash_notes"], task_cpu(task))
        raw: bytes = self._program.read(int(note.value_()), _NOTE.size + _PRSTATUS_BYTES)
        name_size, size, kind, name = _NOTE.unpack_from(raw)
        found: bool = (
            name_size == len(b"CORE\0") and name == b"CORE\0\0\0\0" and kind == _NT_PRSTATUS
        )
        tid = int.from_bytes(raw[_NOTE.size + _PR_PID :][:4], "little")
        if not found or size < _PRSTATUS_BYTES or tid != int(task.pid):
            return None
        return raw[_NOTE.size :]

    def _is_kernel(self, pc: int) -> bool:
        """Return whether an address is in the kernel's half; True if the machine's addresses do not
        show it, as with 32 bits.
        """
        platform = self._program.platform
        if platform is None or not platform.flags & drgn.PlatformFlags.IS_64_BIT:
            return True
        high = platform.arch in (drgn.Architecture.X86_64, drgn.Architecture.AARCH64)
        return bool(pc >> 63) or not high

    def _frame(self, frame: drgn.StackFrame, pc: int) -> dict[str, Any]:
        """Describe one frame.

        A return address may already belong to the next function, so look up the byte before it,
        unless the frame was interrupted.
        """
        inline = bool(frame.is_inline)
        out: dict[str, Any] = {
            "function": None,
            "module": None,
            "symbol_offset": None,
            "file": None,
            "line": None,
            "inline": inline,
            "pc": pc,
            "locals": [],
        }
        with contextlib.suppress(*_ERRORS):
            name = frame.function_name
            out["function"] = name[:_NAME_MAX] if name else None
        inside = pc if frame.interrupted else max(0, pc - 1)
        if not inline:
            with contextlib.suppress(*_ERRORS):
                symbol = self._program.symbol(inside)
                out["function"] = out["function"] or symbol.name[:_NAME_MAX]
                out["symbol_offset"] = pc - symbol.address
        with contextlib.suppress(*_ERRORS):
            module = self._program.module(inside)
            out["module"] = module.name[:_NAME_MAX]
            if out["function"] is None and isinstance(module, drgn.RelocatableModule):
                found = self._symbols_of(module).find(inside)
                if found is not None:
                    out["function"], out["symbol_offset"] = found[0], found[1] + pc - inside
        with contextlib.suppress(*_ERRORS):
            source = frame.source()
            out["file"], out["line"] = source.filename[-1024:] or None, source.line or None
        return out

    def _symbols_of(self, module: drgn.RelocatableModule) -> ModuleSymbols:
        """Read the symbol table that a module has in memory, once."""
        if module.name not in self._symbols:
            self._symbols[module.name] = ModuleSymbols(self._program, module.object)
        return self._symbols[module.name]

    def _locals(self, frame: drgn.StackFrame) -> Iterator[dict[str, str]]:
        """Yield the values that the compiler kept; most are gone, and these are left out."""
        shown = 0
        try:
            names = frame.locals()
        except _ERRORS:
            return
        for name in names:
            if shown >= LOCALS_MAX:
                return
            try:
                value = frame[name]
                if value.absent_:
                    continue
                text = self._value(value)
            except Exception:  # boundary: as above; the other variables stay
                continue
            shown += 1
            yield {"name": name[:_NAME_MAX], "value": text[:VALUE_MAX]}

    def _value(self, value: drgn.Object) -> str:
        """Format a value on one line, without following pointers, because they may be hostile."""
        kind = value.type_
        while kind.kind == drgn.TypeKind.TYPEDEF:
            kind = kind.type
        if kind.kind == drgn.TypeKind.POINTER:
            text = str(value.format_(dereference=False, string=False, symbolize=True))
            return text + self._pointed_text(kind, value)
        size = drgn.sizeof(kind) if kind.is_complete() else 0
        if size > _OBJECT_BYTES_MAX:
            return f"({kind.type_name()}) of {size} bytes"
        text = value.format_(
            columns=1 << 16,
            dereference=False,
            member_type_names=False,
            element_type_names=False,
            members_same_line=True,
            elements_same_line=True,
            implicit_members=False,
            implicit_elements=False,
        )
        return " ".join(str(text).split())

    def _pointed_text(self, kind: drgn.Type, value: drgn.Object) -> str:
        """Show the text that a pointer to char leads to, up to the end of its page at most, because
        the text may have no end.
        """
        target = kind.type
        if target.kind != drgn.TypeKind.INT or target.name != "char":
            return ""
        address = int(value.value_())
        try:
            raw = self._program.read(address, min(_STRING_MAX, _PAGE - address % _PAGE))
        except (drgn.FaultError, OSError, ValueError, OverflowError):
            return ""
        text = raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        return f' "{text}"' if text else ""

    def _cpus(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Describe what each online CPU was running."""
        try:
            for number, cpu in enumerate(for_each_online_cpu(self._program)):
                if number >= CPUS_MAX or time.process_time() > deadline:
                    self._problems.append(f"only {number} CPUs were looked at")
                    return
                task = cpu_curr(self._program, cpu)
                pid, comm = int(task.pid), _comm(task)
                pc, function = self._top(task)
                yield {"cpu": cpu, "tid": pid, "comm": comm, "pc": pc, "function": function}
        except Exception as e:  # boundary: as above
            self._problems.append(f"the CPUs' tasks: {_text(e)}")

    def _top(self, task: drgn.Object) -> tuple[int | None, str | None]:
        """Return where a CPU was: pc and function of the first frame that is not inlined."""
        try:
            for frame in self._trace(task):
                if not frame.is_inline:
                    return int(frame.pc), (frame.function_name or "")[:_NAME_MAX] or None
        except Exception:  # boundary: as above; the CPU's task is known without its place
            pass
        return None, None


def _comm(task: drgn.Object) -> str:
    raw: bytes = task.comm.string_()
    return raw[:64].decode("utf-8", "backslashreplace")


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
