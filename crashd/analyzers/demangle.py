"""Names of functions and types as in the source, from the names that linkers see. Only importer of
rust_demangler.
"""

import ctypes
import re

import rust_demangler

_NAME_MAX = 400
_SYMBOL_MAX, _DEMANGLED_MAX = 8 * _NAME_MAX, 16 << 10
_DOTS_MAX = 8
_NESTED_MAX = 32
_TEMPLATE = re.compile(r"(?<!operator)<[^<>]*>")
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_ESCAPES = {
    "$SP$": "@", "$BP$": "*", "$RF$": "&", "$LT$": "<", "$GT$": ">", "$LP$": "(", "$RP$": ")",
    "$C$": ",", "..": "::",
}  # fmt: skip
_D_LENGTH = re.compile(r"[1-9]\d{0,3}")
_PASCAL = "_$$_"
_RUST_CODE = re.compile(r"\$u([0-9a-f]{1,6})\$")


class Demangler:
    """Names as in the source, by the C++ runtime's own demangler and one for Rust."""

    def __init__(self) -> None:
        self._runtime = ctypes.CDLL("libstdc++.so.6")  # drgn is linked with it
        self._demangle = self._runtime["__cxa_demangle"]
        self._demangle.restype = ctypes.c_void_p
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = [ctypes.c_void_p]
        self._known: dict[str, str] = {}

    def name(self, symbol: str) -> str:
        """Demangle a symbol's name; a name that is not of C++ or Rust stays as it is."""
        found = self._known.get(symbol)
        if found is None:
            found = self._known[symbol] = _shorten(self._name(symbol[:_SYMBOL_MAX]))
        return found

    def type(self, mangled: str) -> str:
        """Demangle the name of a C++ type from its std::type_info."""
        return self._cxx(mangled.lstrip("*")) or mangled

    def _name(self, symbol: str) -> str:
        symbol = symbol.partition("@@")[0]
        if symbol.startswith("_R"):
            return _rust_v0(symbol)
        if symbol.startswith("_D"):
            return _d_name(symbol)
        if _PASCAL in symbol:
            return _pascal_name(symbol)
        if not symbol.startswith("_Z"):
            return symbol
        # A dot may begin a compiler's suffix, or be part of it: `vtable.shim`, a coroutine's frame.
        plain, suffix = symbol, ""
        name = self._cxx(plain)
        while name is None and "." in plain and plain.count(".") <= _DOTS_MAX:
            plain, _, last = plain.rpartition(".")
            suffix = f".{last}{suffix}"
            name = self._cxx(plain)
        if name is None:
            return symbol
        name, _, clones = name.partition(" [clone ")  # as libstdc++ shows a suffix
        suffix = clones.replace("] [clone ", "").rstrip("]") + suffix
        if _RUST_HASH.search(name):
            return _legacy_rust(name)
        return f"{name} [{suffix}]" if suffix and not suffix.startswith(".llvm") else name

    def _cxx(self, mangled: str) -> str | None:
        status = ctypes.c_int(-1)
        result = self._demangle(mangled.encode(), None, None, ctypes.byref(status))
        if not result:
            return None
        try:
            raw = ctypes.string_at(result) if status.value == 0 else b""
        finally:
            self._free(result)
        # libc++ has its types in an inline namespace
        return raw.decode("utf-8", "backslashreplace").replace("std::__1::", "std::") or None


def _d_name(symbol: str) -> str:
    """Return the qualified name in a symbol of D, without its type: each part follows its length
    (dlang.org/spec/abi, "Name mangling"). Templates and references back stay mangled.
    """
    parts, rest = list[str](), symbol[2:]
    while found := _D_LENGTH.match(rest):
        size = int(found[0])
        part, rest = rest[found.end() :][:size], rest[found.end() + size :]
        if len(part) < size or not part.isidentifier() or part.startswith("__T"):
            return symbol
        parts.append(part)
    return ".".join(parts) or symbol


def _pascal_name(symbol: str) -> str:
    """Return unit and name in a symbol of Free Pascal: `UNIT_$$_NAME$ARGUMENTS$$RESULT`, where
    `P$` marks a program; nested procedures have several units.
    """
    *units, name = symbol.removeprefix("P$").removesuffix("$").split(_PASCAL)
    parts = [*units, name.partition("$")[0]]
    return ".".join(parts) if all(part.isidentifier() for part in parts) else symbol


def _rust_v0(symbol: str) -> str:
    try:
        return str(rust_demangler.demangle(symbol.partition(".")[0]))
    except (
        rust_demangler.rust.TypeNotFoundError,
        rust_demangler.rust_v0.UnableTov0Demangle,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return symbol  # it comes from the core and may be malformed


def _shorten(name: str) -> str:
    """Bound a name: remove template arguments from a name that is too long, the innermost first."""
    if len(name) <= _NAME_MAX:
        return name
    name = name[:_DEMANGLED_MAX].replace("\0", "")
    for _ in range(_NESTED_MAX):
        shorter = _TEMPLATE.sub("\0", name)
        if shorter == name:
            break
        name = shorter
        if len(name) + 2 * name.count("\0") <= _NAME_MAX:
            break
    return name.replace("\0", "<\N{HORIZONTAL ELLIPSIS}>")[:_NAME_MAX]


def _legacy_rust(name: str) -> str:
    name = _RUST_HASH.sub("", name)
    for code, text in _RUST_ESCAPES.items():
        name = name.replace(code, text)
    name = _RUST_CODE.sub(lambda m: chr(int(m[1], 16)), name)
    return re.sub(r"(^|::)_(?=[<{])", r"\1", name)
