"""Stacks of all threads, walked by drgn."""

from collections.abc import Mapping
from typing import Any

import drgn

from crashd.analyzers.callers import is_outermost, starts_stack
from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.drgnprogram import DRGN_ERRORS, DrgnProgram, text_of
from crashd.analyzers.framenames import FrameNames
from crashd.analyzers.headregisters import return_from_data, with_registers
from crashd.analyzers.lambdas import name_lambdas
from crashd.analyzers.lostframes import LostFrames
from crashd.domain.elf.ehframe import PT_GNU_EH_FRAME, UnwindTable
from crashd.domain.elf.elfcore import find_segment
from crashd.domain.elf.elfnotes import EM_386
from crashd.domain.elf.modules import Module
from crashd.domain.elf.sigframe import is_restorer

THREADS_MAX = 1024
FRAMES_MAX = 128
FRAMES_OTHER_MAX = 64
FRAMES_TOTAL_MAX = 6000
_SKIPPED_MAX = 4
"""Return addresses outside of code that are skipped, because Go changes stacks there."""


class Stacks:
    """The stacks of one core; `core` has its modules, `names` names the frames."""

    def __init__(self, raw_head: bytes, image: CoreImage, modules: list[Module]) -> None:
        self.image = image
        self._raw_head = raw_head
        self._strayed = return_from_data(raw_head, image)
        """The crashed thread's pc, if it is not in code; drgn gets the caller's registers instead.
        """
        seen = raw_head if self._strayed is None else self._strayed[1]
        self.core = DrgnProgram(seen, image, modules)
        self.names = FrameNames(self.core)
        self._unwind: dict[int, UnwindTable | None] = {}
        self._trace: drgn.StackTrace | None = None
        """The crashed thread's, because drgn walks all of a stack at once."""
        self._registers_386: Mapping[int, dict[str, int]] = {}
        if image.head.machine == EM_386:
            from crashd.analyzers.unwind386 import read_registers  # here: see NativeFacts.prepare

            self._registers_386 = read_registers(raw_head, image)
        self._crashed = image.head.threads[0].tid if image.head.threads else None

    def load_debug_info(self, threads: list[dict[str, Any]]) -> tuple[bool, list[str]]:
        """Load debug information of the modules on these stacks; see DrgnProgram."""
        self.names.forget()
        return self.core.load_debug_info(threads)

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
                frames, end = LostFrames(self, FRAMES_MAX).mend(frames, end)
                name_lambdas(frames)
            if index == 0 and self._strayed is not None and limit:
                frames = [self.names.bare(self._strayed[0]), *frames[: limit - 1]]
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
        if self.core.refused is not None or self._crashed is None:
            return {}
        try:
            trace = self._trace or self.core.program.stack_trace(self._crashed)
            found = dict(trace[0].registers()) if trace else {}
            if self._strayed is not None and "rsp" in found:
                found |= {"rip": self._strayed[0], "rsp": found["rsp"] - 8}
            return found
        except DRGN_ERRORS:
            return {}

    def walk_from(self, registers: Mapping[str, int]) -> list[dict[str, Any]]:
        """Walk the crashed thread's stack from registers other than those at its end (x86-64)."""
        patched = with_registers(self._raw_head, self.image, registers)
        if patched is None or self._crashed is None:
            return [self.names.bare(registers["rip"])]
        other = Stacks(patched, self.image, self.core.modules)
        other.core.alternates = self.core.alternates
        other.core.load(self.core.files)
        frames = other._frames(self._crashed, registers["rip"], FRAMES_MAX)[0]
        if not self.core.debug_loaded or not other.load_debug_info([{"frames": frames}])[0]:
            return frames
        again = other._frames(self._crashed, registers["rip"], FRAMES_MAX)[0]
        # where Go changes stacks, frame pointers lead further than its unwind information
        return again if len(again) >= len(frames) else other.names.with_lines(frames)

    def _frames(
        self, tid: int, pc: int | None, limit: int
    ) -> tuple[list[dict[str, Any]], bool, str | None]:
        """Walk a stack; return the frames, whether there are more, and why the walk ended early.

        Without unwind information drgn follows frame pointers and takes words on the stack for
        return addresses. Addresses that are not code are not shown.
        """
        bare = [self.names.bare(pc)] if pc is not None and limit else []
        if self.core.refused is not None:
            return bare, True, self.core.refused
        if self.image.head.machine == EM_386:
            return self._frames_386(tid, limit)
        try:
            trace = self.core.program.stack_trace(tid)
        except DRGN_ERRORS as e:
            return bare, True, f"the stack cannot be walked: {text_of(e)}"
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
            found = self.names.describe(frame, address, at_fault)
            # After a frame without unwind information, such as Go's signal frames, the frame
            # pointer may lead back to frames that were walked already.
            key = address, found["sp"], found["function"] if found["inline"] else None
            if key not in seen:
                self.names.name_vdso(found, at_fault)
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
            frames += self.names.located(step.pc, after_call=not step.interrupted)
            frames[-1]["sp"], frames[-1]["interrupted"] = step.sp, step.interrupted
            self.names.name_vdso(frames[-1], step.interrupted)
            if frames[-1]["function"] is None and is_restorer(self.image.read(step.pc, 8), EM_386):
                frames[-1]["function"] = "__kernel_rt_sigreturn"  # called by nothing
        return frames[:limit], walk.end is not None or len(frames) > limit, walk.end

    def has_unwind(self, address: int) -> bool:
        """Return whether there is unwind information for an address."""
        table = self._unwind_table(address)
        return table is not None and table.function(address) is not None

    def _unwind_table(self, address: int) -> UnwindTable | None:
        """Return the unwind information of the module at an address."""
        module = self.core.module_at(address)
        if module is None:
            return None
        if module.start not in self._unwind:
            vaddr = find_segment(module.image, PT_GNU_EH_FRAME)
            table = None if vaddr is None else UnwindTable(self.image.read, module.start + vaddr)
            self._unwind[module.start] = table
        return self._unwind[module.start]

    def _what(self, address: int) -> str:
        """Describe an address that cannot be code."""
        if self.image.head.bits == 64 and 1 << 47 <= address < (1 << 64) - (1 << 47):
            return f"{address:#x}, which is not an address"
        if self.image.segment(address) is None:
            return f"{address:#x}, where nothing is mapped"
        return f"{address:#x}, which is not code"


def _follows_fault(frames: list[dict[str, Any]]) -> bool:
    """Return whether a signal interrupted the next frame: Go then calls runtime.sigpanic."""
    return bool(frames) and frames[-1]["function"] == "runtime.sigpanic"
