"""Stacks of i386 programs, which drgn does not walk: by .eh_frame, as the compiler wrote it, and by
the frame pointer where there is none.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from crashd.analyzers.callers import follows_call
from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.auxv import AT_SYSINFO_EHDR
from crashd.domain.elf.cfi import Rules, evaluate, find_rules
from crashd.domain.elf.ehframe import PT_GNU_EH_FRAME, UnwindTable
from crashd.domain.elf.elfcore import find_segment
from crashd.domain.elf.elfnotes import EM_386, NT_PRSTATUS, parse_registers_386
from crashd.domain.elf.headers import Layout, split_notes
from crashd.domain.elf.vdso import IMAGE_MAX as VDSO_MAX

_NAMES = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip")
"""In the order of DWARF's numbers."""
_ESP, _EBP, _EIP = 4, 5, 8
_BITS: Final = 32
_FRAME_MAX = 16 << 20
"""Distance between two frames by frame pointers, at most."""

TableAt = Callable[[int], UnwindTable | None]


class Step(NamedTuple):
    """One frame."""

    pc: int
    sp: int
    interrupted: bool
    """Whether a signal interrupted it, so that `pc` is no return address."""


class Walk(NamedTuple):
    """A stack, and why it ended before its outermost function; None if it did not."""

    steps: list[Step]
    end: str | None


def read_registers(raw_head: bytes, image: CoreImage) -> dict[int, dict[str, int]]:
    """Return the registers of each thread of an i386 core."""
    found: dict[int, dict[str, int]] = {}
    layout = Layout(EM_386, _BITS, "little")
    threads = iter(image.head.threads)
    for offset, size in image.head.notes:
        for name, kind, desc, _ in split_notes(raw_head[offset : offset + size], layout):
            if name == b"CORE" and kind == NT_PRSTATUS and (thread := next(threads, None)):
                found.setdefault(thread.tid, parse_registers_386(desc))
    return found


class Unwinder:
    """Walks stacks; `table_at` gives the unwind information of the module at an address."""

    def __init__(self, image: CoreImage, table_at: TableAt) -> None:
        self._image = image
        self._table_at = table_at
        self._vdso: UnwindTable | None = None
        start = image.head.auxv.get(AT_SYSINFO_EHDR)
        if start is not None:
            vaddr = find_segment(image.read(start, VDSO_MAX), PT_GNU_EH_FRAME)
            if vaddr is not None:
                self._vdso = UnwindTable(image.read, start + vaddr)
        self._start = start or 0

    def walk(self, registers: Mapping[str, int], limit: int) -> Walk:
        """Walk a stack from a thread's registers."""
        now: dict[int, int] = {
            number: registers[name] for number, name in enumerate(_NAMES) if name in registers
        }
        steps: list[Step] = []
        interrupted = True
        while _EIP in now and _ESP in now:
            if len(steps) >= limit:
                return Walk(steps, "more frames than are shown")
            steps.append(Step(now[_EIP], now[_ESP], interrupted))
            found = self._caller(now, interrupted, innermost=len(steps) == 1)
            if isinstance(found, str):
                return Walk(steps, found)
            caller, interrupted = found
            if not caller.get(_EIP):
                return Walk(steps, None)
            if not self._image.is_code(caller[_EIP]):
                return Walk(steps, f"the next return address would be {caller[_EIP]:#x}")
            if caller[_ESP] <= now[_ESP] and not (interrupted or len(steps) == 1):
                return Walk(steps, "the next frame would be below this one")
            now = caller
        return Walk(steps, None)

    def _caller(
        self, now: Mapping[int, int], interrupted: bool, *, innermost: bool
    ) -> tuple[dict[int, int], bool] | str:
        """Return the caller's registers, and whether a signal interrupted the caller; or why there
        are none.
        """
        pc = now[_EIP]
        if innermost and not self._image.is_code(pc):
            target = self._image.word(now[_ESP])  # a call of something that is not code
            if target is None or not self._image.is_code(target):
                return "the program counter is not in code"
            return {**now, _EIP: target, _ESP: now[_ESP] + 4}, False
        inside = pc if interrupted else pc - 1
        table = self._vdso if 0 <= inside - self._start < VDSO_MAX else self._table_at(inside)
        entry = table.entry(inside) if table is not None else None
        if entry is None:
            return self._by_frame_pointer(now)
        try:
            rules = find_rules(self._image.read, entry, inside, _BITS)
            return self._apply(rules, now), rules.is_signal
        except ValueError as e:
            return str(e)

    def _apply(self, rules: Rules, now: Mapping[int, int]) -> dict[int, int]:
        word, mask = self._image.word, (1 << _BITS) - 1
        if isinstance(rules.cfa, bytes):
            cfa = evaluate(rules.cfa, now, word, _BITS)
        elif rules.cfa[0] in now:
            cfa = (now[rules.cfa[0]] + rules.cfa[1]) & mask
        else:
            raise ValueError("the unwind information needs a register that is not known")
        caller = {**now, _ESP: cfa}
        caller.pop(_EIP)
        for number, (kind, value) in rules.registers.items():
            caller.pop(number, None)
            if isinstance(value, bytes):
                found: int | None = evaluate(value, now, word, _BITS, cfa)
                if kind == "at" and found is not None:
                    found = word(found)
            elif kind == "undefined":
                continue
            elif kind == "register":
                found = now.get(value)
            else:
                at = (cfa + value) & mask
                found = at if kind == "value" else word(at)
            if found is not None:
                caller[number] = found
            elif number == _EIP:
                raise ValueError("the return address is not in the core")
        if _EIP in caller and _ESP not in caller:
            raise ValueError("the unwind information does not say where the caller's frame is")
        return caller

    def _by_frame_pointer(self, now: Mapping[int, int]) -> tuple[dict[int, int], bool] | str:
        """Leave a function without unwind information, if its frame pointer leads to a call."""
        frame = now.get(_EBP, 0)
        for at, caller in ((now[_ESP], now.get(_EBP)), (frame + 4, self._image.word(frame))):
            value = self._image.word(at)
            if not 0 <= at - now[_ESP] < _FRAME_MAX or value is None or caller is None:
                continue
            if follows_call(self._image, value):
                return {**now, _EIP: value, _ESP: at + 4, _EBP: caller}, False
        return "a function without unwind information"
