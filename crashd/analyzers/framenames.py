"""What each frame of a stack is: its function, line and module, from symbols, debug information,
Go's own table, and the vDSO.
"""

import contextlib
import os
from typing import Any

import drgn

from crashd.analyzers.demangle import Demangler
from crashd.analyzers.drgnprogram import DRGN_ERRORS, DrgnProgram
from crashd.analyzers.gonames import GoNames
from crashd.analyzers.lambdas import LAMBDA
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
from crashd.domain.elf.auxv import AT_PHDR, AT_SYSINFO_EHDR
from crashd.domain.elf.modules import Module
from crashd.domain.elf.vdso import IMAGE_MAX as VDSO_MAX
from crashd.domain.elf.vdso import VdsoFunction, name_at, parse_vdso
from crashd.edge.sandbox.modulefiles import read_debug_strings

_QUALIFIED_MAX = 24
"""Inlined functions, the innermost ones, that get a qualified name."""
_INLINED_MAX = 128


class FrameNames:
    """Describes the frames of one program."""

    def __init__(self, core: DrgnProgram) -> None:
        self._core = core
        self._image = core.image
        self.demangler = Demangler()
        self.go_panic: tuple[int, int] | None = None
        """Addresses of type and data of the argument of Go's panic()."""
        self._symbols: dict[int, drgn.Symbol | None] = {}
        self._vdso: list[VdsoFunction] | None = None
        self._strings: dict[int, bytes] = {}
        """The strings of debug information, by the module's start."""
        self._unqualified = _QUALIFIED_MAX
        self._has_classes: bool | None = None
        self._go = GoNames(core.image)

    def forget(self) -> None:
        """Forget the symbols that were found: debug information may know more."""
        self._symbols.clear()

    def bare(self, pc: int, *, after_call: bool = False) -> dict[str, Any]:
        """Describe a program counter without its frame."""
        inside = pc - after_call
        module, symbol = self._core.module_at(inside), self.symbol(inside)
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

    def located(self, pc: int, *, after_call: bool) -> list[dict[str, Any]]:
        """Describe a program counter and the functions inlined there, the innermost first."""
        frame = self.bare(pc, after_call=after_call)
        try:
            found = list(self._core.program.source_location(pc - after_call))
        except (*DRGN_ERRORS, AttributeError):  # until drgn 0.0.33: it has no source_location()
            return [frame]
        places = [
            {
                **frame,
                "file": place.filename[-1024:] or None,
                "line": place.line or None,
                "inline": place is not found[-1],
            }
            for place in found[-_INLINED_MAX:]
        ]
        for out, place in zip(places[:-1], found[-_INLINED_MAX:], strict=False):
            name = place.name()
            out["function"] = self.demangler.name(name) if name else None
            out["symbol_offset"] = None
        return places or [frame]

    def with_lines(self, frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Describe frames again, by debug information that is loaded by now."""
        return [
            self.located(frame["pc"], after_call=not frame["interrupted"])[-1]
            | {"sp": frame["sp"], "interrupted": frame["interrupted"]}
            for frame in frames
        ]

    def describe(self, frame: "drgn.StackFrame", pc: int, interrupted: bool) -> dict[str, Any]:
        """Describe one frame.

        A return address may already belong to the next function or line, so look up the byte before
        it, unless a signal interrupted the frame. Also note the argument of Go's panic().
        """
        inside = pc if interrupted else max(0, pc - 1)
        module = self._core.module_at(inside)
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
            symbol = self.symbol(inside) or self.symbol(pc)
            if symbol is not None:
                name = symbol.name
                out["symbol_offset"] = pc - symbol.address
        if name and frame.is_inline and module is not None and self._may_have_classes(module):
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

    def name_vdso(self, frame: dict[str, Any], at_fault: bool) -> None:
        """Name a frame in the vDSO, which no file has."""
        start = self._image.head.auxv.get(AT_SYSINFO_EHDR)
        inside = frame["pc"] - (not at_fault)
        if frame["function"] is None and start is not None and 0 <= inside - start < VDSO_MAX:
            if self._vdso is None:
                self._vdso = parse_vdso(self._image.read(start, VDSO_MAX))
            function = name_at(self._vdso, inside - start)
            if function is not None:
                frame["function"] = function.name
                frame["symbol_offset"] = frame["pc"] - start - function.start

    def symbol(self, address: int) -> "drgn.Symbol | None":
        """Find the symbol at an address; cached, because most threads of a pool share a pc."""
        if address not in self._symbols:
            self._symbols[address] = self._find_symbol(address)
        return self._symbols[address]

    def _find_symbol(self, address: int) -> "drgn.Symbol | None":
        if self._core.refused is not None:
            return None
        try:
            return self._core.program.symbol(address)
        except DRGN_ERRORS:
            return None

    def _source(self, address: int) -> tuple[str | None, int | None]:
        """Find the line of an address, by debug information that is loaded already."""
        try:
            found = self._core.program.source_location(address)[0]
        except (*DRGN_ERRORS, AttributeError):  # until drgn 0.0.33: it has no source_location()
            return None, None
        return found.filename[-1024:] or None, found.line or None

    def _may_have_classes(self, module: Module) -> bool:
        """Return whether a module may have C++: the names of libc's debug information alone take
        as long as the rest of an analysis.
        """
        if self._has_classes is None:
            names = (one.name.rpartition(b"/")[2] for one in self._core.modules)
            self._has_classes = any(name.startswith((b"libstdc++", b"libc++")) for name in names)
        entry = self._image.head.auxv.get(AT_PHDR, 0)
        return self._has_classes or module.start <= entry < module.end  # static, or without std

    def _qualify(self, frame: "drgn.StackFrame", name: str, module: Module) -> str:
        """Return the qualified name of an inlined C++ function, as far as it can be known."""
        if not self._unqualified:
            return name
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
        except (*DRGN_ERRORS, AttributeError):
            pass  # most functions have a bare name, and no other
        return name

    def _is_function(self, frame: "drgn.StackFrame", name: str, qualified: str) -> bool:
        """Return whether an inlined function can only be the one with this qualified name."""
        module = self._core.module_at(frame.pc)
        if module is not None and names_all(self._debug_strings(module.start)):
            try:
                self._core.program.function(name)
            except LookupError:
                return True  # it is neither C nor outside of all namespaces
        return has_parameters(frame, self._core.program.function(qualified))

    def _debug_strings(self, start: int) -> bytes:
        if start not in self._strings:
            fds = (
                self._core.debug.get(start),
                self._core.loaded.get(start),
                self._core.alternates.get(start),
            )
            self._strings[start] = b"".join(read_debug_strings(fd) for fd in fds if fd is not None)
        return self._strings[start]

    def _is_small(self, start: int) -> bool:
        """Return whether a module's debug information can be searched by name."""
        fds = (self._core.debug.get(start), self._core.loaded.get(start))
        return sum(os.fstat(fd).st_size for fd in fds if fd is not None) <= FILE_BYTES_MAX

    def _name_by_go(self, out: dict[str, Any], module: Module | None, address: int) -> None:
        self._go.use(self._core.loaded)
        found = self._go.function(module, address)
        if found is not None:
            out["function"], out["symbol_offset"] = found.name, out["pc"] - found.entry
            out["file"], out["line"] = found.file, found.line


def _interface(frame: "drgn.StackFrame", name: str) -> tuple[int, int] | None:
    """Read a Go interface value: addresses of its type and its data."""
    try:
        value = frame[name]
        return int(value._type.value_()), int(value.data.value_())
    except (*DRGN_ERRORS, TypeError, AttributeError, drgn.ObjectAbsentError):
        return None


def _stack_pointer(frame: "drgn.StackFrame") -> int | None:
    try:
        return int(frame.sp)
    except LookupError:
        return None
