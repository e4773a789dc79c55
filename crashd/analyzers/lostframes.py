"""The crashed thread's stack where unwinding ends or leads astray: functions without unwind
information, stacks that Go's runtime was about to leave, a longjmp() that has loaded nonsense.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Protocol

from crashd.analyzers.callers import (
    call_targets,
    find_caller,
    find_goroutine,
    find_jumper,
    grows_stack,
    is_outermost,
    jumps_away,
)
from crashd.analyzers.coreimage import PF_W, CoreImage
from crashd.analyzers.framenames import FrameNames
from crashd.domain.elf.auxv import AT_EXECFN
from crashd.domain.elf.elfnotes import EM_X86_64

Stack = tuple[list[dict[str, Any]], str | None]
"""Frames, and why the walk ended early."""
_HLT_LOOP = bytes.fromhex("f4ebfd")
_ABORT_FRAMES, _ABORT_BYTES = 5, 480
_ENTERED_FRAMES = 12
"""Innermost frames that are named by the calls of their callers."""
_FOUND_MAX = 16
"""Frames without unwind information whose callers are searched, at most."""
_LOST_FRAMES = 3
"""A walk that ends within so many frames after one without unwind information went astray there."""


class Walker(Protocol):
    """What walks stacks."""

    image: CoreImage
    names: FrameNames

    def registers(self) -> dict[str, int]:
        """Return the crashed thread's registers."""
        ...

    def walk_from(self, registers: Mapping[str, int]) -> list[dict[str, Any]]:
        """Walk the crashed thread's stack from other registers."""
        ...

    def has_unwind(self, address: int) -> bool:
        """Return whether there is unwind information for an address."""
        ...


class LostFrames:
    """Finds frames of the crashed thread that the walk has missed, at most `limit` in all."""

    def __init__(self, walker: Walker, limit: int) -> None:
        self._walker = walker
        self._image = walker.image
        self._names = walker.names
        self._limit = limit

    def mend(self, frames: list[dict[str, Any]], end: str | None) -> Stack:
        """Return the stack as far as it can be known, and why it ended."""
        frames, end = self._leave_growth(*self._find_lost(frames, end))
        frames, end = self._leave_jump(frames, end)
        self._name_abort(frames)
        self._name_entered(frames)
        return frames, end

    def _find_lost(self, frames: list[dict[str, Any]], end: str | None) -> Stack:
        """Search for the callers of the crashed thread's first frame without unwind information, if
        the walk ended there; return the stack and why it ended.
        """
        if self._image.head.machine != EM_X86_64:
            return frames, end
        bare = (n for n, f in enumerate(frames) if not self._walker.has_unwind(f["pc"] - bool(n)))
        index = next(bare, len(frames))
        if index >= len(frames) or len(frames) > index + _LOST_FRAMES:
            return frames, end
        pc, sp = frames[index]["pc"], frames[index]["sp"]
        found = frames[: index + 1]
        if sp is None and index == 0:
            sp = self._image.head.threads[0].sp
        while sp is not None and len(found) < _FOUND_MAX:
            symbol = self._names.symbol(pc - bool(len(found) - 1))
            start = None if symbol is None else symbol.address
            caller = find_caller(self._image, pc, sp, start)
            if caller is None:
                break
            pc, sp = caller
            if self._walker.has_unwind(pc - 1):
                # the call itself: its function may end right after it
                rest = self._walker.walk_from({"rip": pc - 1, "rsp": sp})
                rest[0]["pc"], rest[0]["interrupted"] = pc, False
                return [*found, *rest][: self._limit], None
            found.append(self._names.bare(pc, after_call=True) | {"sp": sp})
        return (found, end) if len(found) > index + 1 else (frames, end)

    def _leave_growth(self, frames: list[dict[str, Any]], end: str | None) -> Stack:
        """Continue on the stack of the goroutine that asked Go's runtime for a larger one."""
        index = next((n for n, f in enumerate(frames) if grows_stack(f["function"])), None)
        registers = (
            find_goroutine(self._image, self._walker.registers()) if index is not None else None
        )
        if index is None or registers is None:
            return frames, end
        return [*frames[: index + 1], *self._walker.walk_from(registers)][: self._limit], None

    def _leave_jump(self, frames: list[dict[str, Any]], end: str | None) -> Stack:
        """Continue at the caller of longjmp(), which had loaded registers from an overwritten
        jmp_buf, if its stack leads to where the thread began.
        """
        if len(frames) != 1 or not jumps_away(frames[0]["function"]):
            return frames, end
        symbol = self._names.symbol(frames[0]["pc"])
        if symbol is None:
            return frames, end
        for stack in self._own_stacks():
            caller = find_jumper(self._image, symbol.address, stack)
            if caller is None:
                continue
            rest = self._walker.walk_from({"rip": caller.pc - 1, "rsp": caller.sp})
            if is_outermost(rest[-1]["function"]):
                rest[0]["pc"], rest[0]["interrupted"] = caller.pc, False
                return [*frames, *rest][: self._limit], None
        return frames, end

    def _own_stacks(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what may be the crashed thread's stack, without its stack pointer:
        a thread's is below what is local to it. The process's first one has the program's name at
        its end, and no other thread on it.
        """
        image, threads = self._image, self._image.head.threads
        local, name = self._walker.registers().get("fs.base", 0), image.head.auxv.get(AT_EXECFN, 0)
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
            if frame["function"] is not None or self._image.head.machine != EM_X86_64:
                return
            if _HLT_LOOP in self._image.read(frame["pc"], _ABORT_BYTES):
                found = frame  # raise() may lie right before it
        if found is not None:
            found["function"] = "abort"

    def _name_entered(self, frames: list[dict[str, Any]]) -> None:
        """Name frames without symbols as their callers do: an exported function may begin with a
        jump to one that only the library knows, or end with one (free() of musl and jemalloc).
        """
        if self._image.head.machine != EM_X86_64:
            return
        for frame, caller in pairwise(frames[:_ENTERED_FRAMES]):
            if frame["function"] is not None or frame["start"] is None or caller["interrupted"]:
                continue
            for target in call_targets(self._image, caller["pc"]):
                symbol = self._names.symbol(target)
                if symbol is not None and symbol.address == target:
                    frame["function"] = self._names.demangler.name(symbol.name)
                    break
