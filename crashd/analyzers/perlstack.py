"""The Perl stack of a crashed interpreter, from PL_curinterp, which Perl exports.

    PL_curinterp ─▶ interpreter ─ Icurcop ─▶ COP: file, line of what runs now
                                └ Icurstackinfo ─▶ PERL_SI ─ si_prev ─▶ … (tied, sort, DESTROY …)
                                                    └ si_cxstack[0 … si_cxix]: PERL_CONTEXT
                                                       └ of a sub: cv, and the COP of its caller

The version is in PL_revision and PL_version, and PL_interp_size shows that the interpreter was
built as the table expects. PL_curinterp is the first thread's interpreter; programs that embed Perl
may have several in that thread, and do not say which one runs, so they have no stack here.

Source: intrpvar.h, cop.h, cv.h, gv.h, hv.h and sv.h of Perl 5.36.0, 5.40.1 and 5.42.3 (as Debian's
packages install them) and 5.38.2 (Ubuntu 24.04), built with threads for 64 bits.
"""

import re
from collections.abc import Iterator

from crashd.analyzers.script import (
    FRAMES_MAX,
    NAME_MAX,
    PATH_MAX,
    Memory,
    ScriptFrame,
    ScriptStack,
    ScriptStacks,
    Symbol,
    UnreadableError,
)

_INTERPRETER_SIZES = {(5, 36): 3768, (5, 38): 3896, (5, 40): 3768, (5, 42): 3768}
_CURCOP, _CURSTACKINFO = 208, 224  # struct interpreter
_COP_LINE, _COP_FILE = 36, 48
_SI_CXSTACK, _SI_PREV, _SI_CXIX, _SI_CXMAX = 8, 16, 32, 36  # PERL_SI
_CX_SIZE, _CX_OLDCOP, _CX_CV, _CX_KIND = 104, 16, 72, 0xF  # PERL_CONTEXT
_CXP_EVALBLOCK = 0x40
_CONTEXTS_MAX = 1 << 16
"""On one stack: so deep is a recursion that fills memory, or a damaged index."""
_STACKS_MAX = 256
_SV_FLAGS, _SV_TYPE = 12, 0xFF
_SVT_PVGV, _SVT_PVHV, _SVT_PVCV = 9, 12, 13
_HAS_NAME = 0x0200_0000
"""SVf_OOK of 5.36, SVphv_HasAUX since then: the hash has a body with a name."""
_XPVCV_NAME, _XPVCV_FLAGS, _CV_NAMED, _XPVCV_STASH = 56, 92, 0x8000, 32
_XPVGV_NAME, _XPVGV_STASH = 32, 40
_XPVHV_NAME, _XPVHV_NAME_COUNT = 32, 60
_HEK_LENGTH, _HEK_KEY = 4, 8


class PerlStacks(ScriptStacks):
    """The stack of the first thread's interpreter."""

    name = "Perl stack"
    kind = "perl"
    modules = re.compile(rb"(lib)?perl(-?5[.\d]*)?(\.so[.\d]*)?")

    def read(self) -> ScriptStack:
        """Read the only stack."""
        if not self.is_program:
            raise UnreadableError("the program embeds Perl, and may have several interpreters")
        return read_frames(self.memory, self.symbol)


def read_frames(memory: Memory, symbol: Symbol) -> ScriptStack:
    """Read the frames of subs, evals and files, and whether there are more.

    Raises:
        UnreadableError: the version is unknown, or the memory damaged.

    """
    version = memory.uint(symbol(b"PL_revision"), 1), memory.uint(symbol(b"PL_version"), 1)
    size = memory.uint(symbol(b"PL_interp_size"), 2)
    if _INTERPRETER_SIZES.get(version) != size:
        raise UnreadableError(
            f"Perl {version[0]}.{version[1]} with an interpreter of {size} bytes is not known"
        )
    interpreter = memory.pointer(symbol(b"PL_curinterp"))
    return _walk(memory, interpreter) if interpreter else ([], False)


def _walk(memory: Memory, interpreter: int) -> tuple[list[ScriptFrame], bool]:
    cop = memory.pointer(interpreter + _CURCOP)
    frames: list[ScriptFrame] = []
    if not cop:
        return frames, False
    for context in _contexts(memory, memory.pointer(interpreter + _CURSTACKINFO)):
        kind = memory.uint(context, 1)
        name = _context_name(memory, context, kind)
        if name is None:
            continue
        frames.append(_frame(memory, name, cop))
        cop = memory.pointer(context + _CX_OLDCOP)
        if len(frames) == FRAMES_MAX:
            return frames, True
    frames.append(_frame(memory, "(main)", cop))
    return frames, False


def _contexts(memory: Memory, stack: int) -> Iterator[int]:
    """Yield the contexts of all stacks, innermost first."""
    for _ in range(_STACKS_MAX):
        if not stack:
            return
        index, last = (memory.uint(stack + at, 4) for at in (_SI_CXIX, _SI_CXMAX))
        index = (index + 1) & 0xFFFFFFFF  # -1 if there is none
        if index > last + 1 or last > _CONTEXTS_MAX:
            raise UnreadableError(f"{index} contexts of {last} on a stack")
        first = memory.pointer(stack + _SI_CXSTACK)
        yield from (first + _CX_SIZE * number for number in reversed(range(index)))
        stack = memory.pointer(stack + _SI_PREV)
    raise UnreadableError("stacks without an end")


def _context_name(memory: Memory, context: int, kind: int) -> str | None:
    """Return the name of what a context runs; None for a block in it."""
    match kind & _CX_KIND:
        case 9 | 10:  # CXt_SUB, CXt_FORMAT
            return _sub_name(memory, memory.pointer(context + _CX_CV))
        case 11 if not kind & _CXP_EVALBLOCK:  # CXt_EVAL: of a string or a file
            return "(eval)"
        case _:
            return None


def _sub_name(memory: Memory, cv: int) -> str:
    body = _body(memory, cv, _SVT_PVCV)
    name = memory.pointer(body + _XPVCV_NAME)
    if memory.uint(body + _XPVCV_FLAGS, 4) & _CV_NAMED:
        stash = memory.pointer(body + _XPVCV_STASH)
    else:
        glob = _body(memory, name, _SVT_PVGV)
        name = memory.pointer(glob + _XPVGV_NAME)
        stash = memory.pointer(glob + _XPVGV_STASH)
    return f"{_package(memory, stash)}::{_key(memory, name)}"


def _package(memory: Memory, stash: int) -> str:
    body = _body(memory, stash, _SVT_PVHV)
    if not memory.uint(stash + _SV_FLAGS, 4) & _HAS_NAME:
        raise UnreadableError("a package has no name")
    name = memory.pointer(body + _XPVHV_NAME)
    if memory.uint(body + _XPVHV_NAME_COUNT, 4):  # it has several: the first is its own
        name = memory.pointer(name)
    return _key(memory, name)


def _body(memory: Memory, sv: int, kind: int) -> int:
    """Return the body of an SV that must be of a kind."""
    if memory.uint(sv + _SV_FLAGS, 4) & _SV_TYPE != kind:
        raise UnreadableError(f"no SV of type {kind} at {sv:#x}")
    return memory.pointer(sv)


def _key(memory: Memory, hek: int) -> str:
    return memory.text(hek + _HEK_KEY, memory.uint(hek + _HEK_LENGTH, 4), NAME_MAX)


def _frame(memory: Memory, name: str, cop: int) -> ScriptFrame:
    file = memory.string(memory.uint(cop + _COP_FILE, 8), PATH_MAX)
    return ScriptFrame(name, file, memory.uint(cop + _COP_LINE, 4))
