"""The exception that ended a C++ program, read from its memory: its type, and its message where the
type's layout is known.
"""

from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.lastwords import (
    MESSAGE_MAX,
    PRINTABLE,
    Demangle,
    Found,
    text_of,
    words_of_stack,
    writable_memory,
)

_CLASSES = (b"GNUCC++\0", b"CLNGC++\0")
"""Of libstdc++ and libc++; both have the same offsets."""
_DEPENDENTS = (b"GNUCC++\x01", b"CLNGC++\x01")
_HEADER = 80
"""Bytes from a 64-bit __cxa_exception to its _Unwind_Exception (libstdc++'s unwind-cxx.h)."""
_NEAR_BYTES = 4096
"""Of the stack below terminate(): abort() and what prints the exception."""
_BASES_MAX = 16
_HANDLERS_MAX = 64
_WITH_MESSAGE = frozenset({b"St13runtime_error", b"St11logic_error"})
"""Their objects are a vtable and a string's address; objects of derived classes start that way."""


def find_exception(image: CoreImage, demangle: Demangle) -> Found:
    """Find the exception that was thrown last: throw and terminate leave its address on the stack,
    and eight letters mark it (the C++ ABI's exception handling, 2.2).
    """
    seen = set[int]()
    for _, value in words_of_stack(image):
        if value in seen or value & 15 or value < 4096:
            continue
        seen.add(value)
        mark = image.read(value, 8)
        if mark in _CLASSES or mark[::-1] in _CLASSES:
            return _thrown(image, demangle, value - _HEADER, value + 32)
        if mark in _DEPENDENTS or mark[::-1] in _DEPENDENTS:
            # __cxa_dependent_exception: its header begins with the address of the primary's object
            for at in (0, 8, 16):
                primary = image.word(value - _HEADER - at) or 0
                if image.read(primary - 32, 8)[::-1] in _CLASSES:
                    return _thrown(image, demangle, primary - 32 - _HEADER, primary)
    return _caught(image, demangle) or {"cxx_terminate": "true"}


def find_nameless_exception(image: CoreImage, demangle: Demangle) -> Found:
    """Find an uncaught exception in a static program without names: terminate() left its address on
    the stack, and has caught it itself.
    """
    for _, value in words_of_stack(image, _NEAR_BYTES):
        if value & 15 or value < 4096 or image.read(value, 8)[::-1] not in _CLASSES:
            continue
        handlers = int.from_bytes(image.read(value - 40, 4), "little", signed=True)
        if 0 < handlers < _HANDLERS_MAX:
            found = _thrown(image, demangle, value - _HEADER, value + 32)
            return found if "cxx_type" in found else {}
    return {}


def _caught(image: CoreImage, demangle: Demangle) -> Found | None:
    """Find an exception that a handler has caught and not released.

    If such a handler calls std::terminate, the exception explains it, but the stack need not point
    to the exception any more.
    """
    for start, memory in writable_memory(image):
        for mark in _CLASSES:
            at = memory.find(mark[::-1])
            while at >= _HEADER:
                handlers = int.from_bytes(memory[at - 40 : at - 36], "little", signed=True)
                if at % 16 == 0 and 0 < handlers < _HANDLERS_MAX:
                    header = start + at - _HEADER
                    return _thrown(image, demangle, header, start + at + 32)
                at = memory.find(mark[::-1], at + 8)
    return None


def _thrown(image: CoreImage, demangle: Demangle, header: int, thrown: int) -> Found:
    """Read type and message of the exception object at `thrown`, whose header is at `header`.

    Only types with a known layout have a message: char *, int, std::string, and the classes of
    _WITH_MESSAGE.
    """
    info = image.word(header)
    mangled = _type_name(image, info)
    if not mangled:
        return {"cxx_terminate": "true"}
    out: Found = {"cxx_type": demangle(mangled.decode("ascii", "backslashreplace"))[:300]}
    if mangled in (b"PKc", b"Pc"):
        out["cxx_what"] = text_of(image.string(image.word(thrown) or 0, MESSAGE_MAX)) or ""
    elif mangled == b"i":
        out["cxx_what"] = str(int.from_bytes(image.read(thrown, 4), "little", signed=True))
    elif mangled.startswith(b"NSt7__cxx1112basic_string"):
        pointer, length = image.word(thrown), image.word(thrown + 8)
        if pointer and length is not None:
            out["cxx_what"] = text_of(image.read(pointer, min(length, MESSAGE_MAX))) or ""
    elif mangled.startswith(b"NSt3__112basic_stringIc"):
        out["cxx_what"] = text_of(_libcxx_string(image, thrown)) or ""
    elif _has_message(image, info):
        out["cxx_what"] = text_of(image.string(image.word(thrown + 8) or 0, MESSAGE_MAX)) or ""
    return out


def _libcxx_string(image: CoreImage, address: int) -> bytes:
    """Read a std::string of libc++: a long one has its lowest bit set (__config, without the
    alternate layout).
    """
    first = image.read(address, 24)
    if len(first) < 24:
        return b""
    if first[0] & 1:
        size, pointer = (int.from_bytes(first[at : at + 8], "little") for at in (8, 16))
        return image.read(pointer, min(size, MESSAGE_MAX))
    return first[1 : 1 + (first[0] >> 1)]


def _type_name(image: CoreImage, info: int | None) -> bytes:
    name = image.word(info + 8) if info else None
    raw = image.string(name, 1024) if name else b""
    return raw.lstrip(b"*") if PRINTABLE.fullmatch(raw) else b""


def _has_message(image: CoreImage, info: int | None) -> bool:
    """Return whether a type is one of _WITH_MESSAGE, or begins with one as its first base."""
    for _ in range(_BASES_MAX):
        name = _type_name(image, info)
        if name in _WITH_MESSAGE:
            return True
        info = _first_base(image, info) if info and name else None
        if not info:
            return False
    return False


def _first_base(image: CoreImage, info: int) -> int | None:
    """Return the type_info of the base class at a type's start.

    With one base (__si_class_type_info) it follows the name. With several (__vmi_class_type_info),
    flags and the number of bases follow, then type and offset of each base: C++ ABI, 2.9.5.
    """
    word = image.word(info + 16)
    if word is not None and word & 0xFFFFFFFF <= 3 and 1 <= word >> 32 <= _BASES_MAX:
        offset = image.word(info + 32)
        return image.word(info + 24) if offset is not None and offset >> 8 == 0 else None
    return word
