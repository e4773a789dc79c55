"""Stacks of all threads, by drgn. The module is one idea, because all of it prepares, walks and
names the stacks of one drgn program.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import _drgn_util.elf
import _drgn_util.plugins
import _drgn_util.typingutils  # noqa: F401  drgn imports these later, when it no longer can
import drgn

from crashd.analyzers.callers import (
    call_targets,
    find_caller,
    find_goroutine,
    find_jumper,
    grows_stack,
    is_outermost,
    jumps_away,
    starts_stack,
)
from crashd.analyzers.coreimage import PF_W, CoreImage
from crashd.analyzers.demangle import Demangler
from crashd.analyzers.gonames import GoNames
from crashd.analyzers.lambdas import LAMBDA, name_lambdas
from crashd.analyzers.qualified import (
    FILE_BYTES_MAX,
    candidates,
    class_of,
    has_parameters,
    is_closures,
    names_all,
    with_class,
)
from crashd.domain.cause.names import plain_name
from crashd.domain.elf.auxv import AT_EXECFN, AT_SYSINFO_EHDR
from crashd.domain.elf.ehframe import PT_GNU_EH_FRAME, UnwindTable
from crashd.domain.elf.elfcore import find_segment
from crashd.domain.elf.elfnotes import EM_386, EM_X86_64
from crashd.domain.elf.modules import Module
from crashd.domain.elf.sigframe import is_restorer
from crashd.domain.elf.vdso import IMAGE_MAX as VDSO_MAX
from crashd.domain.elf.vdso import VdsoFunction, name_at, parse_vdso
from crashd.edge.sandbox.modulefiles import read_debug_strings

THREADS_MAX = 1024
FRAMES_MAX = 128
FRAMES_OTHER_MAX = 64
FRAMES_TOTAL_MAX = 6000
DEBUG_BYTES_MAX = 1 << 30
"""Debug information that is read, for all of a core's modules together."""
_ERRORS = (
    LookupError, ValueError, OverflowError, OSError, NotImplementedError, drgn.FaultError,
    drgn.BadDataError,
)  # fmt: skip
# struct user_regs_struct, pr_reg of struct elf_prstatus (arch/x86/include/asm/user_64.h)
_PR_REG = 112
_USER_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp",
)  # fmt: skip
_SKIPPED_MAX = 4
"""Return addresses outside of code that are skipped, because Go changes stacks there."""
_NOTES_LOOKED_AT = 8
_HLT_LOOP = bytes.fromhex("f4ebfd")
_ABORT_FRAMES, _ABORT_BYTES = 5, 480
_ENTERED_FRAMES = 12
"""Innermost frames that are named by the calls of their callers."""
_QUALIFIED_MAX = 24
"""Inlined functions, the innermost ones, that get a qualified name."""
_FOUND_MAX = 16
"""Frames without unwind information whose callers are searched, at most."""
_LOST_FRAMES = 3
"""A walk that ends within so many frames after one without unwind information went astray there."""


def _read(image: CoreImage, address: int, size: int, offset: int, physical: bool) -> bytes:
    """Read memory for drgn."""
    del offset, physical
    data = image.read(address, size)
    if len(data) < size:
        raise drgn.FaultError("not in the core", address + len(data))
    return data


class Stacks:
    """A drgn program over a core's image and the files of its modules."""

    def __init__(self, raw_head: bytes, image: CoreImage, modules: list[Module]) -> None:
        self.image = image
        self.demangler = Demangler()
        self._modules = modules
        self._starts = [module.start for module in modules]
        self._raw_head = raw_head
        self._files: list[tuple[Module, int | None, int | None]] = []
        self._fd = os.memfd_create("head", os.MFD_CLOEXEC)
        self._strayed = _return_from_data(raw_head, image)
        """The crashed thread's pc, if it is not in code; drgn gets the caller's registers instead.
        """
        os.pwrite(self._fd, raw_head if self._strayed is None else self._strayed[1], 0)
        self.program = drgn.Program()
        self.refused: str | None = None
        """Why drgn does not accept this core; each thread then has only one frame."""
        try:
            self.program.set_core_dump(self._fd)
        except Exception as e:  # boundary: drgn has no narrower class for what libelf refuses
            self.refused = f"stacks cannot be walked: {_text(e)}"
        self.program.set_enabled_debug_info_finders([])
        self.go_panic: tuple[int, int] | None = None
        """Addresses of type and data of the argument of Go's panic()."""
        self._by_module: dict[int, drgn.Module] = {}
        self._symbols: dict[int, drgn.Symbol | None] = {}
        self._debug: dict[int, int | None] = {}
        self._vdso: list[VdsoFunction] | None = None
        self._strings: dict[int, bytes] = {}
        """The strings of debug information, by the module's start."""
        self._unqualified = _QUALIFIED_MAX
        self.alternates: dict[int, int | None] = {}
        """Files with debug information that modules share, by the module's start."""
        self._debug_loaded = False
        self._loaded: dict[int, int | None] = {}
        self._unwind: dict[int, UnwindTable | None] = {}
        self._trace: drgn.StackTrace | None = None
        """The crashed thread's, because drgn walks all of a stack at once."""
        self._go = GoNames(image)
        self._registers_386: Mapping[int, dict[str, int]] = {}
        if image.head.machine == EM_386:
            from crashd.analyzers.unwind386 import read_registers  # here: see NativeFacts.prepare

            self._registers_386 = read_registers(raw_head, image)
        read = partial(_read, image)  # not a method: drgn's program would never be freed
        for segment in image.segments:
            if segment.memsz and self.refused is None:
                self.program.add_memory_segment(segment.vaddr, segment.memsz, read)
        self._crashed = image.head.threads[0].tid if image.head.threads else None

    def load(self, files: Iterable[tuple[Module, int | None, int | None]]) -> list[str]:
        """Give drgn the files of the modules, without debug information; return the problems. The
        descriptors are duplicated.
        """
        self._files = list(files)
        if self.refused is not None:
            return [self.refused]
        problems: list[str] = []
        known = {module.start: (fd, debug) for module, fd, debug in self._files}
        self._debug = {start: debug for start, (_, debug) in known.items()}
        self._loaded = {start: fd for start, (fd, _) in known.items()}
        self._go.use(self._loaded)
        try:
            for module, _ in self.program.loaded_modules():
                self._load_module(module, known, problems)
        except _ERRORS as e:
            problems.append(f"the loader's list of modules cannot be read: {_text(e)}")
        for module in self._modules:
            if module.start not in self._by_module and module.start in known:
                self._add_module(module, known[module.start][0], problems)
        return problems

    def _load_module(
        self,
        module: "drgn.Module",
        known: dict[int, tuple[int | None, int | None]],
        problems: list[str],
    ) -> None:
        ranges = module.address_ranges
        start = ranges[0][0] if ranges else None
        own = self.module_at(start) if start is not None else None
        if own is None or start is None:
            return
        self._by_module[own.start] = module
        fd, _ = known.get(own.start, (None, None))
        if fd is not None and not isinstance(module, drgn.VdsoModule):
            self._try(module, own, fd, problems)

    def _add_module(self, own: Module, fd: int | None, problems: list[str]) -> None:
        """Create a module that the loader's list lacks: it is static, or the list is broken."""
        if fd is None:
            return
        try:
            name = own.name.decode("utf-8", "backslashreplace")
            module = self.program.extra_module(name, own.start, create=True)
            module.address_range = (own.start, own.end)
            if own.build_id:
                module.build_id = bytes.fromhex(own.build_id)
        except _ERRORS as e:
            problems.append(_text(e))
            return
        self._by_module[own.start] = module
        self._try(module, own, fd, problems)

    def _try(self, module: "drgn.Module", own: Module, fd: int, problems: list[str]) -> None:
        name = own.name.decode("utf-8", "backslashreplace")
        try:
            module.debug_file_status = drgn.ModuleFileStatus.DONT_WANT
            module.try_file(name, fd=os.dup(fd))
        except _ERRORS as e:
            problems.append(f"{name}: {_text(e)}")

    def load_debug_info(self, threads: list[dict[str, Any]]) -> tuple[bool, list[str]]:
        """Load debug information of the modules on these stacks; return whether there was any, and
        the problems.
        """
        starts = {
            frame["start"]
            for thread in threads
            for frame in thread["frames"]
            if frame["start"] is not None
        }
        self._debug_loaded = True
        loaded, left, problems = False, DEBUG_BYTES_MAX, list[str]()
        self._symbols.clear()
        for start in sorted(starts):
            module, own = self._by_module.get(start), self.module_at(start)
            if module is None or own is None:
                continue
            for fd in (self._debug.get(start), self._loaded.get(start)):
                if fd is None or isinstance(module, drgn.VdsoModule):
                    continue
                left -= os.fstat(fd).st_size
                if left < 0:
                    problems.append("more debug information than is looked into")
                    return loaded, problems
                if self._want_debug(module, own, fd, problems):
                    loaded = True
                    break
        return loaded, problems

    def _want_debug(self, module: "drgn.Module", own: Module, fd: int, problems: list[str]) -> bool:
        name = own.name.decode("utf-8", "backslashreplace")
        try:
            module.debug_file_status = drgn.ModuleFileStatus.WANT
            module.try_file(name, fd=os.dup(fd))
            alternate = self.alternates.get(own.start)
            if (
                module.debug_file_status == drgn.ModuleFileStatus.WANT_SUPPLEMENTARY
                and alternate is not None
            ):
                module.try_file(name, fd=os.dup(alternate))
            if module.debug_file_status == drgn.ModuleFileStatus.WANT_SUPPLEMENTARY:
                self.program.find_standard_debug_info([module])
        except _ERRORS as e:
            problems.append(f"{name}: {_text(e)}")
        return bool(module.debug_file_status == drgn.ModuleFileStatus.HAVE)

    def has_debug_info(self, start: int) -> bool:
        """Return whether debug information of a module is loaded."""
        module = self._by_module.get(start)
        return module is not None and module.debug_file_status == drgn.ModuleFileStatus.HAVE

    def module_at(self, address: int) -> Module | None:
        """Find the module that contains an address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._modules[index].end:
            return None
        return self._modules[index]

    def symbol_address(self, name: str) -> int | None:
        """Find a data symbol of any module."""
        if self.refused is not None:
            return None
        try:
            return int(self.program.symbol(name).address)
        except _ERRORS:
            return None

    def threads(self) -> list[dict[str, Any]]:
        """Walk the stacks, the crashed thread's first."""
        known = self.image.head.threads[:THREADS_MAX]
        found: dict[int, dict[str, Any]] = {}
        left = FRAMES_TOTAL_MAX
        # after the first, by address: each frame of the stored core is then unpacked once
        for index in [0, *sorted(range(1, len(known)), key=lambda n: known[n].sp or 0)][
            : len(known)
        ]:
            thread = known[index]
            limit = min(left, FRAMES_MAX if index == 0 else FRAMES_OTHER_MAX)
            frames, cut, end = self._frames(thread.tid, thread.pc, limit)
            if index == 0:
                frames, end = self._leave_growth(*self._find_lost(frames, end))
                frames, end = self._leave_jump(frames, end)
                self._name_abort(frames)
                self._name_entered(frames)
                name_lambdas(frames)
            if index == 0 and self._strayed is not None and limit:
                frames = [self._bare_frame(self._strayed[0]), *frames[: limit - 1]]
            left -= len(frames)
            found[index] = {
                "tid": thread.tid,
                "crashed": index == 0,
                "frames": frames,
                "cut": cut,
                "end": end,
            }
        return [found[index] for index in sorted(found)]

    def registers(self) -> dict[str, int]:
        """Return the crashed thread's registers."""
        if self.image.head.machine == EM_386 and self._crashed is not None:
            return self._registers_386.get(self._crashed, {})
        if self.refused is not None or self._crashed is None:
            return {}
        try:
            trace = self._trace or self.program.stack_trace(self._crashed)
            found = dict(trace[0].registers()) if trace else {}
            if self._strayed is not None and "rsp" in found:
                found |= {"rip": self._strayed[0], "rsp": found["rsp"] - 8}
            return found
        except _ERRORS:
            return {}

    def walk_from(self, registers: Mapping[str, int]) -> list[dict[str, Any]]:
        """Walk the crashed thread's stack from registers other than those at its end (x86-64)."""
        patched = _with_registers(self._raw_head, self.image, registers)
        if patched is None or self._crashed is None:
            return [self._bare_frame(registers["rip"])]
        other = Stacks(patched, self.image, self._modules)
        other.alternates = self.alternates
        other.load(self._files)
        frames = other._frames(self._crashed, registers["rip"], FRAMES_MAX)[0]
        if not self._debug_loaded or not other.load_debug_info([{"frames": frames}])[0]:
            return frames
        again = other._frames(self._crashed, registers["rip"], FRAMES_MAX)[0]
        # where Go changes stacks, frame pointers lead further than its unwind information
        return again if len(again) >= len(frames) else other._with_lines(frames)

    def _frames(
        self, tid: int, pc: int | None, limit: int
    ) -> tuple[list[dict[str, Any]], bool, str | None]:
        """Walk a stack; return the frames, whether there are more, and why the walk ended early.

        Without unwind information drgn follows frame pointers and takes words on the stack for
        return addresses. Addresses that are not code are not shown.
        """
        bare = [self._bare_frame(pc)] if pc is not None and limit else []
        if self.refused is not None:
            return bare, True, self.refused
        if self.image.head.machine == EM_386:
            return self._frames_386(tid, limit)
        try:
            trace = self.program.stack_trace(tid)
        except _ERRORS as e:
            return bare, True, f"the stack cannot be walked: {_text(e)}"
        if tid == self._crashed:
            self._trace = trace
        frames: list[dict[str, Any]] = []
        skipped = 0
        seen = set[tuple[int, int | None, str | None]]()
        for frame in trace:
            if len(frames) >= limit:
                return frames, True, "more frames than are shown"
            try:
                address = frame.pc
            except LookupError:
                break
            if frames and (not address or starts_stack(frames[-1]["function"])):
                break
            if frames and not self.image.is_code(address):
                if is_outermost(frames[-1]["function"]):
                    break  # Go's first function has no return address below it
                if skipped < _SKIPPED_MAX and (frames[-1]["function"] or "").startswith("runtime."):
                    skipped += 1  # where Go changes stacks; it keeps frame pointers
                    continue
                return frames, True, f"the next return address would be {self._what(address)}"
            at_fault = frame.interrupted or _follows_fault(frames)
            if self._strayed is not None and not frames and tid == self._crashed:
                at_fault = False  # it is the return address
            found = self._frame(frame, address, at_fault)
            # After a frame without unwind information, such as Go's signal frames, the frame
            # pointer may lead back to frames that were walked already.
            key = address, found["sp"], found["function"] if found["inline"] else None
            if key not in seen:
                self._name_vdso(found, at_fault)
                frames.append(found)
            seen.add(key)
        return frames, False, None

    def _frames_386(self, tid: int, limit: int) -> tuple[list[dict[str, Any]], bool, str | None]:
        """Walk the stack of an i386 program, which drgn does not."""
        from crashd.analyzers.unwind386 import Unwinder

        walk = Unwinder(self.image, self._unwind_table).walk(
            self._registers_386.get(tid, {}), limit
        )
        frames: list[dict[str, Any]] = []
        for step in walk.steps:
            frames += self._located(step.pc, after_call=not step.interrupted)
            frames[-1]["sp"], frames[-1]["interrupted"] = step.sp, step.interrupted
            self._name_vdso(frames[-1], step.interrupted)
            if frames[-1]["function"] is None and is_restorer(self.image.read(step.pc, 8), EM_386):
                frames[-1]["function"] = "__kernel_rt_sigreturn"  # called by nothing
        return frames[:limit], walk.end is not None or len(frames) > limit, walk.end

    def _located(self, pc: int, *, after_call: bool) -> list[dict[str, Any]]:
        """Describe a program counter and the functions inlined there, the innermost first."""
        frame = self._bare_frame(pc, after_call=after_call)
        try:
            found = list(self.program.source_location(pc - after_call))
        except (*_ERRORS, AttributeError):  # until drgn 0.0.33: it has no source_location()
            return [frame]
        places = [
            {
                **frame,
                "file": place.filename[-1024:] or None,
                "line": place.line or None,
                "inline": place is not found[-1],
            }
            for place in found[-FRAMES_MAX:]
        ]
        for out, place in zip(places[:-1], found[-FRAMES_MAX:], strict=False):
            name = place.name()
            out["function"] = self.demangler.name(name) if name else None
            out["symbol_offset"] = None
        return places or [frame]

    def _find_lost(
        self, frames: list[dict[str, Any]], end: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Search for the callers of the crashed thread's first frame without unwind information, if
        the walk ended there; return the stack and why it ended.
        """
        if self.image.head.machine != EM_X86_64:
            return frames, end
        bare = (n for n, f in enumerate(frames) if not self._has_unwind(f["pc"] - bool(n)))
        index = next(bare, len(frames))
        if index >= len(frames) or len(frames) > index + _LOST_FRAMES:
            return frames, end
        pc, sp = frames[index]["pc"], frames[index]["sp"]
        found = frames[: index + 1]
        if sp is None and index == 0:
            sp = self.image.head.threads[0].sp
        while sp is not None and len(found) < _FOUND_MAX:
            symbol = self._symbol(pc - bool(len(found) - 1))
            start = None if symbol is None else symbol.address
            caller = find_caller(self.image, pc, sp, start)
            if caller is None:
                break
            pc, sp = caller
            if self._has_unwind(pc - 1):
                # the call itself: its function may end right after it
                rest = self.walk_from({"rip": pc - 1, "rsp": sp})
                rest[0]["pc"], rest[0]["interrupted"] = pc, False
                return [*found, *rest][:FRAMES_MAX], None
            found.append(self._bare_frame(pc, after_call=True) | {"sp": sp})
        return (found, end) if len(found) > index + 1 else (frames, end)

    def _name_entered(self, frames: list[dict[str, Any]]) -> None:
        """Name frames without symbols as their callers do: an exported function may begin with a
        jump to one that only the library knows, or end with one (free() of musl and jemalloc).
        """
        if self.image.head.machine != EM_X86_64:
            return
        for frame, caller in pairwise(frames[:_ENTERED_FRAMES]):
            if frame["function"] is not None or frame["start"] is None or caller["interrupted"]:
                continue
            for target in call_targets(self.image, caller["pc"]):
                symbol = self._symbol(target)
                if symbol is not None and symbol.address == target:
                    frame["function"] = self.demangler.name(symbol.name)
                    break

    def _leave_growth(
        self, frames: list[dict[str, Any]], end: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Continue on the stack of the goroutine that asked Go's runtime for a larger one."""
        index = next((n for n, f in enumerate(frames) if grows_stack(f["function"])), None)
        registers = find_goroutine(self.image, self.registers()) if index is not None else None
        if index is None or registers is None:
            return frames, end
        return [*frames[: index + 1], *self.walk_from(registers)][:FRAMES_MAX], None

    def _leave_jump(
        self, frames: list[dict[str, Any]], end: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Continue at the caller of longjmp(), which had loaded registers from an overwritten
        jmp_buf, if its stack leads to where the thread began.
        """
        if len(frames) != 1 or not jumps_away(frames[0]["function"]):
            return frames, end
        symbol = self._symbol(frames[0]["pc"])
        if symbol is None:
            return frames, end
        for stack in self._own_stacks():
            caller = find_jumper(self.image, symbol.address, stack)
            if caller is None:
                continue
            rest = self.walk_from({"rip": caller.pc - 1, "rsp": caller.sp})
            if is_outermost(rest[-1]["function"]):
                rest[0]["pc"], rest[0]["interrupted"] = caller.pc, False
                return [*frames, *rest][:FRAMES_MAX], None
        return frames, end

    def _own_stacks(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what may be the crashed thread's stack, without its stack pointer:
        a thread's is below what is local to it. The process's first one has the program's name at
        its end, and no other thread on it.
        """
        image, threads = self.image, self.image.head.threads
        local, name = self.registers().get("fs.base", 0), image.head.auxv.get(AT_EXECFN, 0)
        for at in (local, name):
            segment = image.segment(at)
            if segment is None or not segment.flags & PF_W:
                continue
            if at == local or all(image.segment(t.sp or 0) is not segment for t in threads[1:]):
                yield segment.vaddr, at

    def _name_abort(self, frames: list[dict[str, Any]]) -> None:
        """Name abort() in a static program without symbols, by the code after its call of raise():
        glibc executes `hlt` for ever. What called it is the place of the crash.
        """
        found = None
        for frame in frames[1:_ABORT_FRAMES]:
            if frame["function"] is not None or self.image.head.machine != EM_X86_64:
                return
            if _HLT_LOOP in self.image.read(frame["pc"], _ABORT_BYTES):
                found = frame  # raise() may lie right before it
        if found is not None:
            found["function"] = "abort"

    def _has_unwind(self, address: int) -> bool:
        table = self._unwind_table(address)
        return table is not None and table.function(address) is not None

    def _unwind_table(self, address: int) -> UnwindTable | None:
        """Return the unwind information of the module at an address."""
        module = self.module_at(address)
        if module is None:
            return None
        if module.start not in self._unwind:
            vaddr = find_segment(module.image, PT_GNU_EH_FRAME)
            table = None if vaddr is None else UnwindTable(self.image.read, module.start + vaddr)
            self._unwind[module.start] = table
        return self._unwind[module.start]

    def _name_vdso(self, frame: dict[str, Any], at_fault: bool) -> None:
        """Name a frame in the vDSO, which no file has."""
        start = self.image.head.auxv.get(AT_SYSINFO_EHDR)
        inside = frame["pc"] - (not at_fault)
        if frame["function"] is None and start is not None and 0 <= inside - start < VDSO_MAX:
            if self._vdso is None:
                self._vdso = parse_vdso(self.image.read(start, VDSO_MAX))
            function = name_at(self._vdso, inside - start)
            if function is not None:
                frame["function"] = function.name
                frame["symbol_offset"] = frame["pc"] - start - function.start

    def _what(self, address: int) -> str:
        """Describe an address that cannot be code."""
        if self.image.head.bits == 64 and 1 << 47 <= address < (1 << 64) - (1 << 47):
            return f"{address:#x}, which is not an address"
        if self.image.segment(address) is None:
            return f"{address:#x}, where nothing is mapped"
        return f"{address:#x}, which is not code"

    def _bare_frame(self, pc: int, *, after_call: bool = False) -> dict[str, Any]:
        """Describe a program counter without its frame."""
        inside = pc - after_call
        module, symbol = self.module_at(inside), self._symbol(inside)
        file, line = self._source(inside) if after_call else (None, None)
        return {
            "pc": pc,
            "sp": None,
            "start": None if module is None else module.start,
            "function": None if symbol is None else self.demangler.name(symbol.name),
            "symbol_offset": None if symbol is None else pc - symbol.address,
            "file": file,
            "line": line,
            "inline": False,
            "interrupted": False,
        }

    def _with_lines(self, frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            self._located(frame["pc"], after_call=not frame["interrupted"])[-1]
            | {"sp": frame["sp"], "interrupted": frame["interrupted"]}
            for frame in frames
        ]

    def _source(self, address: int) -> tuple[str | None, int | None]:
        """Find the line of an address, by debug information that is loaded already."""
        try:
            found = self.program.source_location(address)[0]
        except (*_ERRORS, AttributeError):  # until drgn 0.0.33: it has no source_location()
            return None, None
        return found.filename[-1024:] or None, found.line or None

    def _frame(self, frame: "drgn.StackFrame", pc: int, interrupted: bool) -> dict[str, Any]:
        """Describe one frame.

        A return address may already belong to the next function or line, so look up the byte before
        it, unless a signal interrupted the frame. Also note the argument of Go's panic().
        """
        inside = pc if interrupted else max(0, pc - 1)
        module = self.module_at(inside)
        out: dict[str, Any] = {
            "pc": pc,
            "sp": None,
            "start": None if module is None else module.start,
            "function": None,
            "symbol_offset": None,
            "file": None,
            "line": None,
            "inline": False,
            "interrupted": False,
        }
        out["sp"] = _stack_pointer(frame)
        out["inline"] = frame.is_inline
        out["interrupted"] = frame.interrupted
        name = frame.function_name
        if not frame.is_inline:
            symbol = self._symbol(inside) or self._symbol(pc)
            if symbol is not None:
                name = symbol.name
                out["symbol_offset"] = pc - symbol.address
        if name and frame.is_inline and module is not None and self._unqualified:
            name = self._qualify(frame, name, module)
        if name:
            out["function"] = self.demangler.name(name)
            if name == "runtime.gopanic" and self.go_panic is None:
                self.go_panic = _interface(frame, "e")
        with contextlib.suppress(LookupError):
            source = frame.source()
            out["file"], out["line"] = source.filename[-1024:] or None, source.line or None
        if not name:
            self._name_by_go(out, module, inside)
        return out

    def _qualify(self, frame: "drgn.StackFrame", name: str, module: Module) -> str:
        """Return the qualified name of an inlined C++ function, as far as it can be known."""
        self._unqualified -= 1
        if "::" in name:
            return name
        try:
            if is_closures(frame):
                return f"{LAMBDA}::{name}"
            owner = class_of(frame)
            strings = self._debug_strings(module.start)
            if owner is not None:
                return with_class(name, owner, strings, self.demangler)
            if b"\0_Z" not in strings or not self._is_small(module.start):
                return name
            found = candidates(plain_name(name), strings, self.demangler)
            if len(found) == 1 and self._is_function(frame, name, *found):
                return found.pop()
        except (*_ERRORS, AttributeError):
            pass  # most functions have a bare name, and no other
        return name

    def _is_function(self, frame: "drgn.StackFrame", name: str, qualified: str) -> bool:
        """Return whether an inlined function can only be the one with this qualified name."""
        module = self.module_at(frame.pc)
        if module is not None and names_all(self._debug_strings(module.start)):
            try:
                self.program.function(name)
            except LookupError:
                return True  # it is neither C nor outside of all namespaces
        return has_parameters(frame, self.program.function(qualified))

    def _debug_strings(self, start: int) -> bytes:
        if start not in self._strings:
            fds = (self._debug.get(start), self._loaded.get(start), self.alternates.get(start))
            self._strings[start] = b"".join(read_debug_strings(fd) for fd in fds if fd is not None)
        return self._strings[start]

    def _is_small(self, start: int) -> bool:
        """Return whether a module's debug information can be searched by name."""
        fds = (self._debug.get(start), self._loaded.get(start))
        return sum(os.fstat(fd).st_size for fd in fds if fd is not None) <= FILE_BYTES_MAX

    def _name_by_go(self, out: dict[str, Any], module: Module | None, address: int) -> None:
        found = self._go.function(module, address)
        if found is not None:
            out["function"], out["symbol_offset"] = found.name, out["pc"] - found.entry
            out["file"], out["line"] = found.file, found.line

    def _symbol(self, address: int) -> "drgn.Symbol | None":
        """Find the symbol at an address; cached, because most threads of a pool share a pc."""
        if address not in self._symbols:
            self._symbols[address] = self._find_symbol(address)
        return self._symbols[address]

    def _find_symbol(self, address: int) -> "drgn.Symbol | None":
        if self.refused is not None:
            return None
        try:
            return self.program.symbol(address)
        except _ERRORS:
            return None


def _return_from_data(raw_head: bytes, image: CoreImage) -> tuple[int, bytes] | None:
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
    patched = _with_registers(raw_head, image, {"rip": caller, "rsp": sp})
    return None if patched is None else (first.pc, patched)


def _with_registers(
    raw_head: bytes, image: CoreImage, registers: Mapping[str, int]
) -> bytes | None:
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


def _follows_fault(frames: list[dict[str, Any]]) -> bool:
    """Return whether a signal interrupted the next frame: Go then calls runtime.sigpanic."""
    return bool(frames) and frames[-1]["function"] == "runtime.sigpanic"


def _interface(frame: "drgn.StackFrame", name: str) -> tuple[int, int] | None:
    """Read a Go interface value: addresses of its type and its data."""
    try:
        value = frame[name]
        return int(value._type.value_()), int(value.data.value_())
    except (*_ERRORS, TypeError, AttributeError, drgn.ObjectAbsentError):
        return None


def _stack_pointer(frame: "drgn.StackFrame") -> int | None:
    try:
        return int(frame.sp)
    except LookupError:
        return None


def _text(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
