"""Last words: what a program or its runtime said of its own death, as far as its memory has it."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from crashd.analyzers.coreimage import CoreImage

MESSAGE_MAX = 1000
_STACK_SCAN_BYTES = 64 << 10
_CXX_CLASS = b"GNUCC++\0"
_CXX_DEPENDENT = b"GNUCC++\x01"
_CXX_HEADER = 80
"""From __cxa_exception's start to its _Unwind_Exception with 64 bits (libstdc++'s unwind-cxx.h)."""
_BASES_MAX = 16
_WITH_MESSAGE = frozenset({b"St13runtime_error", b"St11logic_error"})
"""Their object is a vtable and a string's address; so is the start of all derived from them."""
_PRINTABLE = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]+")
_RUST_FILE = re.compile(rb"[\x20-\x7e]{1,1020}\.rs")
_GO_BACKLOG = 512
_GO_KIND_AT = 23  # in runtime._type, internal/abi/type.go
_GO_INT, _GO_POINTER, _GO_STRING, _GO_STRUCT = 2, 22, 24, 25
_CXX_NAMES = (
    "std::terminate",
    "__cxxabiv1::__terminate",
    "__gnu_cxx::__verbose_terminate",
    "__cxa_throw",
    "__cxa_rethrow",
    "__terminate",
)
_RUST_NAMES = frozenset({"rust_begin_unwind", "rust_panic"})

Symbol = Callable[[str], int | None]
Frames = list[dict[str, Any]]


def collect(
    image: CoreImage,
    symbol: Symbol,
    demangle: Callable[[str], str],
    frames: Frames,
    go_panic: tuple[int, int] | None,
) -> dict[str, str]:
    """Collect the messages that the crashed thread's stack and the runtimes' variables have.

    `go_panic` is what Go's panic() was given: addresses of type and data.
    """
    names = [frame["function"] or "" for frame in frames]
    found: dict[str, str | None] = {
        "abort": _abort_message(image, symbol),
        "glib": _pointed(image, symbol("__glib_assert_msg")),
    }
    if any(name.startswith(_CXX_NAMES) for name in names):
        found |= _cxx_exception(image, demangle)
    if any("panicking::" in name or name in _RUST_NAMES for name in names):
        found |= _rust_panic(image, frames)
    if any(name.startswith("runtime.") for name in names):
        found["go_fatal"] = _go_fatal(image, symbol) or _go_thrown(image, frames)
        go_panic = go_panic or _go_arguments(image, frames, ("runtime.gopanic",))
        if go_panic is not None:
            found["go_panic"] = _go_value(image, *go_panic) or "panic"
    return {key: value for key, value in found.items() if value}


# -- C ---------------------------------------------------------------------------------------------


def _abort_message(image: CoreImage, symbol: Symbol) -> str | None:
    """Read glibc's __abort_msg: a pointer to a size of 32 bits and a text (include/stdlib.h)."""
    address = symbol("__abort_msg")
    pointer = image.word(address) if address is not None else None
    return _text(image.string(pointer + 4, MESSAGE_MAX)) if pointer else None


def _pointed(image: CoreImage, address: int | None) -> str | None:
    pointer = image.word(address) if address is not None else None
    return _text(image.string(pointer, MESSAGE_MAX)) if pointer else None


def _text(raw: bytes) -> str | None:
    return raw[:MESSAGE_MAX].decode("utf-8", "backslashreplace").strip() or None


# -- C++ -------------------------------------------------------------------------------------------


def _words(image: CoreImage, size: int = _STACK_SCAN_BYTES) -> Iterator[tuple[int, int]]:
    """Give address and value of each word on the crashed thread's stack, from its pointer on."""
    sp = image.head.threads[0].sp if image.head.threads else None
    if sp is None or image.head.bits != 64:
        return
    sp &= ~7
    raw = image.read(sp, size)
    for at in range(0, len(raw) - 7, 8):
        yield sp + at, int.from_bytes(raw[at : at + 8], image.head.byteorder)


def _cxx_exception(image: CoreImage, demangle: Callable[[str], str]) -> dict[str, str | None]:
    """Find the exception that was thrown last: throw and terminate leave its address on the
    stack, and it is marked by eight letters (the C++ ABI's exception handling, 2.2).
    """
    seen = set[int]()
    for _, value in _words(image):
        if value in seen or value & 15 or value < 4096:
            continue
        seen.add(value)
        mark = image.read(value, 8)
        if mark in (_CXX_CLASS, _CXX_CLASS[::-1]):
            return _thrown(image, demangle, value - _CXX_HEADER, value + 32)
        if mark in (_CXX_DEPENDENT, _CXX_DEPENDENT[::-1]):
            # __cxa_dependent_exception: the first word of its own header is the primary's object
            primary = image.word(value - _CXX_HEADER - 16) or image.word(value - _CXX_HEADER)
            if primary:
                return _thrown(image, demangle, primary - 32 - _CXX_HEADER, primary)
    return {"cxx_terminate": "true"}


def _thrown(
    image: CoreImage, demangle: Callable[[str], str], header: int, thrown: int
) -> dict[str, str | None]:
    info = image.word(header)
    mangled = _type_name(image, info)
    if not mangled:
        return {"cxx_terminate": "true"}
    out: dict[str, str | None] = {
        "cxx_type": demangle(mangled.decode("ascii", "backslashreplace"))[:300]
    }
    if mangled in (b"PKc", b"Pc"):
        out["cxx_what"] = _text(image.string(image.word(thrown) or 0, MESSAGE_MAX)) or ""
    elif mangled == b"i":
        out["cxx_what"] = str(int.from_bytes(image.read(thrown, 4), "little", signed=True))
    elif mangled.startswith(b"NSt7__cxx1112basic_string"):
        pointer, length = image.word(thrown), image.word(thrown + 8)
        if pointer and length is not None:
            out["cxx_what"] = _text(image.read(pointer, min(length, MESSAGE_MAX))) or ""
    elif _has_message(image, info):
        out["cxx_what"] = _text(image.string(image.word(thrown + 8) or 0, MESSAGE_MAX)) or ""
    return out


def _type_name(image: CoreImage, info: int | None) -> bytes:
    name = image.word(info + 8) if info else None
    raw = image.string(name, 1024) if name else b""
    return raw.lstrip(b"*") if _PRINTABLE.fullmatch(raw) else b""


def _has_message(image: CoreImage, info: int | None) -> bool:
    """Tell whether a type is one of _WITH_MESSAGE or singly derived from one."""
    for _ in range(_BASES_MAX):
        name = _type_name(image, info)
        if name in _WITH_MESSAGE:
            return True
        info = image.word(info + 16) if info and name else None
        if not info:
            return False
    return False


# -- Rust ------------------------------------------------------------------------------------------


def _rust_panic(image: CoreImage, frames: Frames) -> dict[str, str | None]:
    """Find the core::panic::Location (file, length, line, column) that panicked, and its message:
    both are handed down on the stack.
    """
    top = max((f["sp"] or 0 for f in frames if "panicking::" in (f["function"] or "")), default=0)
    words = [word for word in _words(image) if not top or word[0] <= top + 4096]
    location = next((at for _, value in words if (at := _rust_location(image, value))), None)
    pairs = {(first, second) for (_, first), (_, second) in pairwise(words)}
    found: list[str] = []
    for pointer, length in pairs:
        # since 1.93 fmt::Arguments tags the length of a plain text: twice it, and one
        if length & 1 and (pointer, length >> 1) in pairs:
            continue
        text = _rust_string(image, pointer, length)
        if text is not None:
            found.append(text)
    return {"rust_location": location, "rust_panic": max(found, key=len, default="panic")}


def _rust_location(image: CoreImage, address: int) -> str | None:
    raw = image.read(address, 24) if address > 4096 else b""
    if len(raw) < 24:
        return None
    pointer, length = (int.from_bytes(raw[i : i + 8], "little") for i in (0, 8))
    line, column = (int.from_bytes(raw[i : i + 4], "little") for i in (16, 20))
    if not 4 <= length <= 1024 or not 0 < line < 1 << 24 or not 0 < column < 1 << 16:
        return None
    name = image.read(pointer, length).rstrip(b"\0")
    if not _RUST_FILE.fullmatch(name) or b"/rustc/" in name or b"/library/" in name:
        return None
    return f"{name.decode()}:{line}:{column}"


def _rust_string(image: CoreImage, pointer: int, length: int) -> str | None:
    if pointer < 4096 or not 3 <= length <= MESSAGE_MAX:
        return None
    raw = image.read(pointer, length)
    if len(raw) < length or not _PRINTABLE.fullmatch(raw):
        return None
    if _RUST_FILE.fullmatch(raw) or raw.startswith(b"/"):
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


# -- Go --------------------------------------------------------------------------------------------


def _go_fatal(image: CoreImage, symbol: Symbol) -> str | None:
    """Read what the runtime printed last before it gave up: it keeps the end of that for cores
    (runtime.printBacklog in print.go).
    """
    backlog, index = symbol("runtime.printBacklog"), symbol("runtime.printBacklogIndex")
    end = image.word(index) if index is not None else None
    if backlog is None or end is None or not 0 <= end <= _GO_BACKLOG:
        return None
    raw = image.read(backlog, _GO_BACKLOG)
    text = (raw[end:] + raw[:end]).replace(b"\0", b"")
    _, mark, rest = text.rpartition(b"fatal error: ")
    return _text(rest.split(b"\n", 1)[0]) if mark else None


def _go_value(image: CoreImage, kind_at: int, data: int) -> str | None:
    """Read a value as its message: a string, an integer, and of what is no plain value the string
    that it begins with (errors.errorString, fmt.wrapError, runtime.errorString …).
    """
    kind = (image.read(kind_at + _GO_KIND_AT, 1) or b"\0")[0] & 31
    if kind == _GO_INT:
        return str(int.from_bytes(image.read(data, 8), "little", signed=True))
    if kind not in (_GO_POINTER, _GO_STRING, _GO_STRUCT):
        return None
    first, second = image.word(data), image.word(data + 8)
    if first is None or second is None:
        return None
    raw = image.read(first, second) if first > 4096 and 0 < second <= MESSAGE_MAX else b""
    if raw and len(raw) == second and _PRINTABLE.fullmatch(raw):
        return _text(raw)
    if kind == _GO_STRUCT and second < 1 << 48:  # runtime.boundsError: x and y come first
        signed = first - (1 << 64) if first >> 63 else first
        return f"index out of range [{signed}] with length {second}"
    return None


def _go_thrown(image: CoreImage, frames: Frames) -> str | None:
    """Read what a stripped program's runtime.throw() was given: a string."""
    given = _go_arguments(image, frames, ("runtime.throw", "runtime.fatal"))
    if given is None or not 0 < given[1] <= MESSAGE_MAX:
        return None
    raw = image.read(*given)
    return _text(raw) if len(raw) == given[1] and _PRINTABLE.fullmatch(raw) else None


def _go_arguments(
    image: CoreImage, frames: Frames, names: tuple[str, ...]
) -> tuple[int, int] | None:
    """Read the first two words that a Go function was called with, from above its return address:
    there its caller has left room, and the function spills registers that it needs again
    (cmd/compile/abi-internal.md, "Stack layout"). It needs no debug information.
    """
    for frame, caller in pairwise(frames):
        if frame["function"] in names and caller["sp"] is not None:
            first, second = image.word(caller["sp"]), image.word(caller["sp"] + 8)
            return None if first is None or second is None else (first, second)
    return None
