"""The Lua stack of a crashed thread, from the lua_State that Lua's C functions pass on.

    lua_State ─ l_G ─▶ global_State
      ├ errorJmp ─▶ on the thread's own stack, where lua_pcall() or lua_resume() began
      └ ci ─▶ CallInfo ─ previous ─▶ …
                └ func ─▶ LClosure ─▶ Proto: code, lines, constants, names of locals and upvalues

Lua exports no variable that leads there. But the state is the first argument of nearly every
function, so it is on the thread's own stack; and only a state that runs has an errorJmp there (none
has if a program calls Lua without protection). A coroutine's lies below that of the one that
resumed it, and its frames come first.

Lua's functions have no names of their own. A function is named as Lua's own traceback does it: by
the variable, field or method in the instruction that called it. A function that C called (pcall,
sort) has no name. Only Lua's own frames are read, not those of its C functions.

Source: lstate.h, lobject.h, lopcodes.h, and ldebug.c (getobjname, luaG_getfuncline) of Lua 5.4.4,
for x86-64.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from crashd.analyzers.script import (
    FRAMES_MAX,
    NAME_MAX,
    PATH_MAX,
    CrashedScriptStacks,
    Memory,
    ScriptFrame,
    ScriptStack,
    Symbol,
    UnreadableError,
)

_VERSIONS = ("Lua 5.4.4",)
_IDENT = re.compile(r"\$LuaVersion: (Lua \d+\.\d+\.\d+) ")
_TT, _THREAD, _PROTO, _SHORT, _LONG = 8, 8, 10, 4, 20
_STATUS, _GLOBAL, _CI, _ERROR_JMP, _BASE_CI = 10, 24, 32, 88, 96  # lua_State
_FUNC, _PREVIOUS, _SAVED_PC, _CALL_STATUS = 0, 16, 32, 62  # CallInfo
_CIST_C, _CIST_HOOKED, _CIST_TAIL, _CIST_FIN = 1 << 1, 1 << 3, 1 << 5, 1 << 7
_LUA_CLOSURE = 6 | 64  # LUA_VLCL, collectable
_CLOSURE_PROTO = 24
_SIZE_UPVALUES, _SIZE_K, _SIZE_CODE, _SIZE_LINES, _SIZE_LOCALS, _SIZE_ABS = 16, 20, 24, 28, 36, 40
_LINE_DEFINED, _K, _CODE, _UPVALUES = 44, 56, 64, 80
_LINES, _ABS, _LOCALS, _SOURCE = 88, 96, 104, 112
_SHORT_LENGTH, _LONG_LENGTH, _TEXT = 11, 16, 24  # TString
_VALUE, _UPVALUE = 16, 16
"""Sizes of TValue and Upvaldesc."""
_CODE_MAX = 1 << 20
_CALLS_MAX = 200_000
"""LUAI_MAXSTACK is a million slots, and each call takes several."""
_ABSOLUTE = 0x80  # ABSLINEINFO
_MAIN, _NAMELESS = "(main)", "(anonymous)"
_LOADNIL, _JMP, _CALL, _TAILCALL, _TFORCALL = 8, 56, 68, 69, 76
_SETS_A = frozenset(
    (*range(10), *range(11, 15), *range(19, 46), *range(49, 54), 67, 73, 74, 77, *range(79, 82))
)
"""Instructions that change their register A, besides calls (luaP_opmodes)."""
_MOVES_MAX = 16


class LuaStacks(CrashedScriptStacks):
    """The stack of the crashed thread."""

    name = "Lua stack"
    kind = "lua"
    modules = re.compile(rb"(lib)?lua-?5\.[1-4](-c\+\+)?(\.so[.\d]*)?")

    def read(self) -> ScriptStack:
        """Search the crashed thread's stacks."""
        segments = [(at, self.opened.image.segment(at)) for at in self.starts]
        ends = [(at, found.vaddr + found.memsz) for at, found in segments if found is not None]
        return read_frames(self.memory, self.symbol, self.words(), ends)


def read_frames(
    memory: Memory, symbol: Symbol, words: Iterable[int], stacks: Iterable[tuple[int, int]]
) -> ScriptStack:
    """Read a thread's frames, and whether there are more; `words` are what is on its own stacks,
    which are between the addresses in `stacks`.

    Raises:
        UnreadableError: the version is unknown, or the memory damaged.

    """
    ident = memory.string(symbol(b"lua_ident"), 256)
    version = _IDENT.match(ident)
    if version is None or version[1] not in _VERSIONS:
        found = version[1] if version is not None else "this Lua"
        raise UnreadableError(f"{found} is not one of {', '.join(_VERSIONS)}")
    states = _running(memory, words, list(stacks))
    frames: list[ScriptFrame] = []
    for _, state in sorted(states.items()):
        for frame in _walk(memory, state):
            if len(frames) == FRAMES_MAX:
                return frames, True
            frames.append(frame)
    return frames, False


def _running(memory: Memory, words: Iterable[int], stacks: list[tuple[int, int]]) -> dict[int, int]:
    """Return the states that run on the thread's own stack, by where they began there."""
    found: dict[int, int] = {}
    common = None
    for word in words:
        try:
            if memory.uint(word + _TT, 1) != _THREAD or memory.uint(word + _STATUS, 1):
                continue
            began, shared = memory.pointer(word + _ERROR_JMP), memory.pointer(word + _GLOBAL)
            calls = memory.pointer(word + _CI)
        except UnreadableError:
            continue  # most words lead nowhere
        if not any(low <= began < high for low, high in stacks) or not shared or not calls:
            continue
        if calls != word + _BASE_CI and common in (None, shared):
            common = shared
            found[began] = word
    return found


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a Lua function, and where it is."""

    proto: "_Proto"
    pc: int


def _walk(memory: Memory, state: int) -> Iterator[ScriptFrame]:
    """Yield a state's Lua functions, the innermost first."""
    at = memory.pointer(state + _CI)
    call, status = _call(memory, at)
    for _ in range(_CALLS_MAX):
        at = memory.pointer(at + _PREVIOUS)
        if not at:
            return
        caller, above = _call(memory, at)
        if call is not None:
            name = _name(caller, status, above) or _NAMELESS
            yield call.proto.frame(_MAIN if call.proto.is_main else name, call.pc)
        call, status = caller, above
    raise UnreadableError("calls without an end")


def _call(memory: Memory, at: int) -> tuple[_Call | None, int]:
    """Return the Lua function that a CallInfo runs, None for C; and the call's status."""
    status = memory.uint(at + _CALL_STATUS, 2)
    if status & _CIST_C:
        return None, status
    slot = memory.pointer(at + _FUNC)
    if memory.uint(slot + 8, 1) != _LUA_CLOSURE:
        raise UnreadableError(f"no function of Lua at {slot:#x}")
    proto = _Proto(memory, memory.pointer(memory.pointer(slot) + _CLOSURE_PROTO))
    return _Call(proto, proto.index(memory.pointer(at + _SAVED_PC))), status


def _name(caller: _Call | None, status: int, above: int) -> str | None:
    """Return how the instruction of the caller calls a function (funcnamefromcall)."""
    if status & _CIST_FIN:
        return "__gc"
    if caller is None or status & _CIST_TAIL or above & _CIST_HOOKED:
        return None
    instruction = caller.proto.code(caller.pc)
    match instruction & 0x7F:
        case 68 | 69:  # OP_CALL, OP_TAILCALL
            return caller.proto.object_name(caller.pc, instruction >> 7 & 0xFF)
        case 76:  # OP_TFORCALL
            return "(for iterator)"
        case _:
            return "(metamethod)"


class _Proto:
    """A function's prototype."""

    def __init__(self, memory: Memory, at: int) -> None:
        if memory.uint(at + _TT, 1) != _PROTO:
            raise UnreadableError(f"no prototype at {at:#x}")
        self._memory, self._at = memory, at
        self._size = self._count(_SIZE_CODE)

    def _count(self, member: int) -> int:
        size = self._memory.uint(self._at + member, 4)
        if size > _CODE_MAX:
            raise UnreadableError(f"a prototype with {size} entries")
        return size

    @property
    def is_main(self) -> bool:
        """Whether it is a file's own code."""
        return self._memory.uint(self._at + _LINE_DEFINED, 4) == 0

    def index(self, saved: int) -> int:
        """Return the index of the instruction before a saved pc."""
        distance = saved - self._memory.pointer(self._at + _CODE)
        if distance % 4 or not 0 < distance <= 4 * self._size:
            raise UnreadableError("a call outside of its function's code")
        return distance // 4 - 1

    def code(self, pc: int) -> int:
        """Return an instruction."""
        return self._memory.uint(self._memory.pointer(self._at + _CODE) + 4 * pc, 4)

    def frame(self, name: str, pc: int) -> ScriptFrame:
        """Describe the function at an instruction."""
        source = self._memory.pointer(self._at + _SOURCE)
        text = self._string(source, PATH_MAX) if source else "=?"
        file = text[1:] if text[:1] in "@=" else "(string)"
        return ScriptFrame(name, file or "?", self._line(pc))

    def _line(self, pc: int) -> int | None:
        """Sum up the differences of lines, or begin at an absolute one (luaG_getfuncline)."""
        count, memory = self._count(_SIZE_LINES), self._memory
        if pc >= count:
            return None  # stripped
        line = memory.uint(self._at + _LINE_DEFINED, 4)
        raw = memory.read(memory.pointer(self._at + _LINES), pc + 1)
        begin, last = 0, raw.rfind(_ABSOLUTE)
        if last >= 0:
            begin, line = last + 1, self._absolute(last)
        return line + sum(value - 256 if value >= 128 else value for value in raw[begin:])

    def _absolute(self, pc: int) -> int:
        entries = self._memory.pointer(self._at + _ABS)
        raw = self._memory.read(entries, 8 * self._count(_SIZE_ABS))
        for at in range(0, len(raw), 8):
            if int.from_bytes(raw[at : at + 4], "little") == pc:
                return int.from_bytes(raw[at + 4 : at + 8], "little")
        raise UnreadableError("a line is missing")

    def object_name(self, pc: int, register: int) -> str | None:
        """Return the name of what a register holds before an instruction (getobjname)."""
        for _ in range(_MOVES_MAX):
            if (local := self._local(register, pc)) is not None:
                return local
            found = self._setter(pc, register)
            if found is None:
                return None
            pc, instruction = found, self.code(found)
            second, third = instruction >> 16 & 0xFF, instruction >> 24
            match instruction & 0x7F:
                case 0 if second < instruction >> 7 & 0xFF:  # OP_MOVE
                    register = second
                case 9:  # OP_GETUPVAL
                    return self._upvalue(second)
                case 11 | 14:  # OP_GETTABUP, OP_GETFIELD
                    return self._constant(third)
                case 12:  # OP_GETTABLE: the key is in a register
                    return None
                case 20 if instruction >> 15 & 1:  # OP_SELF
                    return self._constant(third)
                case _:
                    return None
        return None

    def _setter(self, last: int, register: int) -> int | None:
        """Return the last instruction that set a register for sure (findsetreg)."""
        found, target = None, 0
        raw = self._memory.read(self._memory.pointer(self._at + _CODE), 4 * last)
        for pc in range(last):
            instruction = int.from_bytes(raw[4 * pc : 4 * pc + 4], "little")
            operation, first = instruction & 0x7F, instruction >> 7 & 0xFF
            if operation == _JMP:
                aim = pc + 1 + (instruction >> 7) - 0xFFFFFF
                target = aim if target < aim <= last else target
                continue
            if _sets(operation, first, instruction >> 16 & 0xFF, register):
                found = None if pc < target else pc
        return found

    def _local(self, register: int, pc: int) -> str | None:
        count = self._count(_SIZE_LOCALS)
        start = self._memory.pointer(self._at + _LOCALS) if count else 0
        left = register
        for at in range(start, start + 16 * count, 16):
            if self._memory.uint(at + 8, 4) > pc:
                break
            if pc < self._memory.uint(at + 12, 4):
                if left == 0:
                    return self._string(self._memory.pointer(at), NAME_MAX)
                left -= 1
        return None

    def _upvalue(self, index: int) -> str | None:
        if index >= self._count(_SIZE_UPVALUES):
            raise UnreadableError("no such upvalue")
        place = self._memory.pointer(self._at + _UPVALUES) + _UPVALUE * index
        name = self._memory.pointer(place)
        return self._string(name, NAME_MAX) if name else None

    def _constant(self, index: int) -> str | None:
        if index >= self._count(_SIZE_K):
            raise UnreadableError("no such constant")
        at = self._memory.pointer(self._at + _K) + _VALUE * index
        if self._memory.uint(at + 8, 1) & 0x0F != _SHORT:
            return None
        return self._string(self._memory.pointer(at), NAME_MAX)

    def _string(self, at: int, limit: int) -> str:
        kind = self._memory.uint(at + _TT, 1)
        if kind == _SHORT:
            return self._memory.text(at + _TEXT, self._memory.uint(at + _SHORT_LENGTH, 1), limit)
        if kind != _LONG:
            raise UnreadableError(f"no string at {at:#x}")
        size = self._memory.uint(at + _LONG_LENGTH, 8)
        return self._memory.text(at + _TEXT, min(size, limit), limit)


def _sets(operation: int, first: int, second: int, register: int) -> bool:
    """Return whether an instruction changes a register; `first` and `second` are its A and B."""
    if operation == _LOADNIL:
        return first <= register <= first + second
    if operation == _TFORCALL:
        return register >= first + 2
    if operation in (_CALL, _TAILCALL):
        return register >= first
    return operation in _SETS_A and register == first
