"""The Ruby stack of a crashed thread, from the rb_execution_context_t that its C functions pass on.

    rb_execution_context_t ─ thread_ptr ─▶ rb_thread_t: its ec, and the tid
      └ vm_stack: at its end are control frames ─ iseq ─▶ rb_iseq_constant_body: path, label,
                                                          lines of instructions

Ruby 3.3 exports no variable that leads there (ruby_current_vm_ptr of 3.1 is hidden). But the
context is the first argument of nearly every function of the VM, so it is on the thread's own
stack; and only one structure points to a thread that points back to it and has the thread's id.

The line of an instruction is found as Ruby does: the rank of its position in a set of bits is the
index of its entry (succ_index_lookup). Only Ruby's own frames are read, not those of its C
functions.

Source: vm_core.h, iseq.c and vm_backtrace.c of Ruby 3.1.2 (as in ruby3.1-dev of
Debian, rb_mjit_min_header-3.1.2.h) and 3.3.8 (source and ruby3.3-dev of Debian), for x86-64.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from crashd.analyzers.script import (
    FRAMES_MAX,
    NAME_MAX,
    PATH_MAX,
    CrashedScriptStacks,
    Memory,
    MissingError,
    ScriptFrame,
    ScriptStack,
    Symbol,
    UnreadableError,
)

_EC_STACK, _EC_STACK_SIZE, _EC_CFP, _EC_THREAD = 0, 8, 16, 48  # rb_execution_context_t
_PC, _ISEQ, _EP = 0, 16, 32  # rb_control_frame_t
_CFRAME = 0x80  # VM_FRAME_FLAG_CFRAME, in the flags at ep[0]
_BODY = 16  # rb_iseq_t
_ISEQ_SIZE, _ENCODED, _PATHOBJ, _LABEL = 4, 8, 64, 80  # rb_iseq_constant_body
_INFO_ENTRY_SIZE = 12
_INFO_MAX = 1 << 20
_IMMEDIATE = 54  # IMMEDIATE_TABLE_SIZE
_TYPE, _STRING, _ARRAY, _IMEMO, _IMEMO_ISEQ = 0x1F, 5, 7, 0x1A, 7
_ARRAY_EMBEDDED = 0x2000
_STRING_NOEMBED = 0x2000
_STACK_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class _Layout:
    """Offsets that differ between versions."""

    thread_ec: int
    thread_tid: int
    """In rb_thread_t, or in the rb_native_thread that thread_native points to."""
    thread_native: int | None
    cfp_size: int
    insns_info: int
    embedded: int
    """Where an embedded string begins."""
    length_in_flags: bool
    """Whether an embedded string's length is in its flags."""


_LAYOUTS = {
    "3.1": _Layout(40, 88, None, 64, 120, 16, True),
    "3.3": _Layout(48, 24, 40, 56, 112, 24, False),
}


class RubyStacks(CrashedScriptStacks):
    """The stack of the crashed thread."""

    name = "Ruby stack"
    kind = "ruby"
    modules = re.compile(rb"(lib)?ruby(-?\d+\.\d+)?(\.so[.\d]*)?")

    def read(self) -> ScriptStack:
        """Search the crashed thread's stacks."""
        return read_frames(self.memory, self.symbol, self.tid, self.words())


def read_frames(memory: Memory, symbol: Symbol, tid: int, words: Iterable[int]) -> ScriptStack:
    """Read a thread's frames, and whether there are more; `words` are what is on its stack.

    Raises:
        UnreadableError: the version is unknown, or the memory damaged.

    """
    version = memory.string(symbol(b"ruby_version"), 32)
    layout = _LAYOUTS.get(version.rpartition(".")[0])
    if layout is None:
        raise UnreadableError(f"Ruby {version} is not one of {', '.join(_LAYOUTS)}")
    for word in words:
        if _is_context(memory, layout, word, tid):
            return _walk(memory, layout, word)
    return [], False


def _is_context(memory: Memory, layout: _Layout, at: int, tid: int) -> bool:
    """Return whether an execution context is at an address, and the thread's."""
    try:
        thread = memory.pointer(at + _EC_THREAD)
        if not thread or memory.pointer(thread + layout.thread_ec) != at:
            return False
        native = thread
        if layout.thread_native is not None:
            native = memory.pointer(thread + layout.thread_native)
        return memory.uint(native + layout.thread_tid, 4) == tid
    except MissingError:
        return False


def _walk(memory: Memory, layout: _Layout, context: int) -> tuple[list[ScriptFrame], bool]:
    start = memory.pointer(context + _EC_STACK)
    size = 8 * memory.uint(context + _EC_STACK_SIZE, 8)
    at, end = memory.pointer(context + _EC_CFP), start + size
    if not start < at <= end or size > _STACK_MAX:
        raise UnreadableError("control frames are not on the stack")
    frames: list[ScriptFrame] = []
    while at + 2 * layout.cfp_size <= end:  # the last one is a thread's own
        if len(frames) == FRAMES_MAX:
            return frames, True
        iseq, pc = memory.pointer(at + _ISEQ), memory.pointer(at + _PC)
        if iseq and pc and not memory.uint(memory.pointer(at + _EP), 8) & _CFRAME:
            frames.append(_frame(memory, layout, iseq, pc))
        at += layout.cfp_size
    return frames, False


def _frame(memory: Memory, layout: _Layout, iseq: int, pc: int) -> ScriptFrame:
    flags = memory.uint(iseq, 8)
    if flags & _TYPE != _IMEMO or flags >> 12 & 15 != _IMEMO_ISEQ:
        raise UnreadableError(f"no instructions at {iseq:#x}")
    body = memory.pointer(iseq + _BODY)
    path = memory.pointer(body + _PATHOBJ)
    kind = memory.uint(path, 8)
    if kind & _TYPE == _ARRAY:  # the path, and the real path
        path = memory.pointer(path + 16 if kind & _ARRAY_EMBEDDED else memory.pointer(path + 32))
    label = _string(memory, layout, memory.pointer(body + _LABEL), NAME_MAX)
    file = _string(memory, layout, path, PATH_MAX)
    return ScriptFrame(label, file, _line(memory, layout, body, pc))


def _string(memory: Memory, layout: _Layout, at: int, limit: int) -> str:
    flags = memory.uint(at, 8)
    if flags & _TYPE != _STRING:
        raise UnreadableError(f"no string at {at:#x}")
    if flags & _STRING_NOEMBED:
        return memory.text(memory.uint(at + 24, 8), memory.uint(at + 16, 8), limit)
    size = flags >> 14 & 0x1F if layout.length_in_flags else memory.uint(at + 16, 8)
    return memory.text(at + layout.embedded, size, limit)


def _line(memory: Memory, layout: _Layout, body: int, pc: int) -> int | None:
    """Return the line of the instruction before `pc` (calc_lineno)."""
    position = (pc - memory.pointer(body + _ENCODED)) // 8
    if not 0 <= position <= memory.uint(body + _ISEQ_SIZE, 4):
        raise UnreadableError("a program counter is not in its instructions")
    info = body + layout.insns_info
    entries, count = memory.pointer(info), memory.uint(info + 16, 4)
    if not count or count > _INFO_MAX:
        return None
    index = 1
    if count > 1:
        index = _rank(memory, memory.pointer(info + 24), max(position - 1, 0))
    if not 1 <= index <= count:
        raise UnreadableError("an instruction has no line")
    return memory.uint(entries + _INFO_ENTRY_SIZE * (index - 1), 4)


def _rank(memory: Memory, table: int, position: int) -> int:
    """Return how many positions up to this one have an entry (succ_index_lookup)."""
    if position < _IMMEDIATE:
        part = memory.uint(table + 8 * (position // 9), 8)
        return part >> 7 * (position % 9) & 0x7F
    number, bit = divmod(position - _IMMEDIATE, 512)
    block = table + 8 * (_IMMEDIATE // 9) + 80 * number
    word, bit = divmod(bit, 64)
    ranks = memory.uint(block + 8, 8)
    before = ranks >> 9 * (word - 1) & 0x1FF if word else 0
    bits = memory.uint(block + 16 + 8 * word, 8) & (2 << bit) - 1
    return memory.uint(block, 4) + before + bits.bit_count()
