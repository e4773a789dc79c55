"""Demangles the names of Rust functions. Pure.

    _RNvMs3_NtCsabcdefghijk_9demo_rust4nodeNtB5_4Node6update   demo_rust::node::Node::update

The result leaves out the hash of the crate and the arguments of generics. Source: RFC 2603, Rust
symbol name mangling v0. A symbol may be hostile: work is bounded, and any other name is returned
unchanged.
"""

import re
from collections.abc import Callable
from typing import Final

__all__ = ["demangle"]

DEPTH_MAX: Final = 32
STEPS_MAX: Final = 400
LENGTH_MAX: Final = 512

_BASIC: Final = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8",
    "i": "isize", "j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_",
    "s": "i16", "t": "u16", "u": "()", "v": "...", "x": "i64", "y": "u64", "z": "!",
}  # fmt: skip
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LENGTH = re.compile(r"0|[1-9]\d{0,2}")


class _MangledError(Exception):
    """The symbol is not a valid Rust symbol."""


def demangle(symbol: str) -> str:
    """Return the path of a mangled function; return any other name unchanged."""
    if not symbol.startswith("_R") or len(symbol) > LENGTH_MAX:
        return symbol
    parser = _Parser(symbol[2:])
    try:
        return parser.path(0) or symbol
    except (_MangledError, IndexError, ValueError):
        return symbol


class _Parser:
    """A cursor in the symbol."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._steps = 0

    def path(self, depth: int) -> str:
        """Parse a path."""
        self._step(depth)
        tag = self._take()
        if tag == "C":
            return self._identifier()
        if tag == "N":
            namespace = self._take()
            parent, name = self.path(depth + 1), self._identifier()
            if namespace == "C":
                name = "{closure}" if not name else f"{{closure:{name}}}"
            return f"{parent}::{name}" if name else parent
        if tag == "M":
            self._impl(depth)
            return self.type(depth + 1)
        if tag == "X":
            self._impl(depth)
            return f"<{self.type(depth + 1)} as {self.path(depth + 1)}>"
        if tag == "Y":
            return f"<{self.type(depth + 1)} as {self.path(depth + 1)}>"
        if tag == "I":
            name = self.path(depth + 1)
            self._arguments(depth)
            return name
        if tag == "B":
            return self._back(depth, self.path)
        raise _MangledError

    def type(self, depth: int) -> str:
        """Parse a type; of a compound type return the outline."""
        self._step(depth)
        tag = self._take()
        if tag in _BASIC:
            return _BASIC[tag]
        if tag in "RQ":
            if self._peek() == "L":
                self._take()
                self._number()
            return ("&" if tag == "R" else "&mut ") + self.type(depth + 1)
        if tag in "PO":
            return ("*const " if tag == "P" else "*mut ") + self.type(depth + 1)
        if tag == "S":
            return f"[{self.type(depth + 1)}]"
        if tag == "A":
            inner = self.type(depth + 1)
            self._constant(depth)
            return f"[{inner}; _]"
        if tag == "T":
            parts = []
            while self._peek() not in ("E", ""):
                parts.append(self.type(depth + 1))
            self._take()
            return f"({', '.join(parts)})"
        if tag == "B":
            return self._back(depth, self.type)
        if tag in "FD":
            raise _MangledError
        self._at -= 1
        return self.path(depth + 1)

    def _impl(self, depth: int) -> None:
        """Skip the path of an impl; its type is enough."""
        if self._peek() == "s":
            self._take()
            self._number()
        self.path(depth + 1)

    def _arguments(self, depth: int) -> None:
        while self._peek() not in ("E", ""):
            if self._peek() == "L":
                self._take()
                self._number()
            elif self._peek() == "K":
                self._take()
                self._constant(depth)
            else:
                self.type(depth + 1)
        self._take()

    def _constant(self, depth: int) -> None:
        self._step(depth)
        if self._peek() == "B":
            self._take()
            self._number()
            return
        if self._peek() == "p":
            self._take()
            return
        self.type(depth + 1)
        end = self._text.index("_", self._at)
        self._at = end + 1

    def _back(self, depth: int, parse: Callable[[int], str]) -> str:
        target, here = self._number(), self._at
        if target >= here:
            raise _MangledError
        self._at = target
        name = parse(depth + 1)
        self._at = here
        return name

    def _identifier(self) -> str:
        if self._peek() == "s":
            self._take()
            self._number()
        if self._peek() == "u":
            raise _MangledError
        digits = _LENGTH.match(self._text, self._at)
        if digits is None:
            raise _MangledError
        self._at = digits.end()
        length = int(digits[0])
        if self._peek() == "_":
            self._take()
        name = self._text[self._at : self._at + length]
        if len(name) != length:
            raise _MangledError
        self._at += length
        return name

    def _number(self) -> int:
        """Parse a base-62 number, which ends in an underscore."""
        end = self._text.index("_", self._at)
        digits = self._text[self._at : end]
        self._at = end + 1
        if not digits:
            return 0
        value = 0
        for digit in digits[:12]:
            value = value * 62 + _DIGITS.index(digit)
        return value + 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _step(self, depth: int) -> None:
        self._steps += 1
        if depth > DEPTH_MAX or self._steps > STEPS_MAX:
            raise _MangledError
