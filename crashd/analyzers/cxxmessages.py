"""The exception that ended a C++ program, read from its memory: its type, and its message where the
type's layout is known, or what() has just returned it.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from struct import Struct
from typing import Any

from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.lastwords import (
    MESSAGE_MAX,
    PRINTABLE,
    Demangle,
    Found,
    Frames,
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
"""Their objects are a vtable and a string's address."""
_STRING_VIEW = b"St17basic_string_viewIcSt11char_traitsIcEE"
_NUMBERS = {
    code: Struct(form)
    for code, form in (
        (b"s", "<h"), (b"t", "<H"), (b"i", "<i"), (b"j", "<I"), (b"l", "<q"), (b"m", "<Q"),
        (b"x", "<q"), (b"y", "<Q"), (b"f", "<f"), (b"d", "<d"),
    )
}  # fmt: skip
"""By the names that the C++ ABI gives the types."""
_EXCEPTION, _PLAIN_WHAT = b"St9exception", b"std::exception"
_REFCOUNTED_HEADER = 128
"""Bytes that __cxa_allocate_exception() allocates before the object (libstdc++'s eh_alloc.cc)."""
_OBJECT_MAX, _OBJECT_MIN = 1024, 64
_PRINTER_BYTES = 512
"""Of the stack where frames have no names: abort() and the handler of terminate()."""
_TERMINATE = ("std::terminate", "__cxxabiv1::__terminate")
_LIBRARYS = ("__gnu_cxx::", "__cxxabiv1::")
_PRINTED_TIMES = 2


def find_exception(image: CoreImage, demangle: Demangle, frames: Frames) -> Found:
    """Find the exception that was thrown last, or else one that a handler has not released."""
    place = _last_thrown(image) or _caught(image)
    found = None if place is None else _describe(image, demangle, place, frames)
    return found or {"cxx_terminate": "true"}


def find_nameless_exception(image: CoreImage, demangle: Demangle) -> Found:
    """Find an uncaught exception in a static program without names: terminate() left its address on
    the stack, and has caught it itself.
    """
    for _, value in words_of_stack(image, _NEAR_BYTES):
        if value & 15 or value < 4096 or image.read(value, 8)[::-1] not in _CLASSES:
            continue
        if _is_caught(image.read(value - 40, 4)):
            return _describe(image, demangle, (value - _HEADER, value + 32), []) or {}
    return {}


_Place = tuple[int, int]
"""Where an exception's header is, and the object that was thrown."""


def _last_thrown(image: CoreImage) -> _Place | None:
    """Find it by the stack, where throw and terminate leave its address: eight letters mark it (the
    C++ ABI's exception handling, 2.2).
    """
    seen = set[int]()
    for _, value in words_of_stack(image):
        if value in seen or value & 15 or value < 4096:
            continue
        seen.add(value)
        mark = image.read(value, 8)
        if mark in _CLASSES or mark[::-1] in _CLASSES:
            return value - _HEADER, value + 32
        if mark in _DEPENDENTS or mark[::-1] in _DEPENDENTS:
            # __cxa_dependent_exception: its header begins with the address of the primary's object
            for at in (0, 8, 16):
                primary = image.word(value - _HEADER - at) or 0
                if image.read(primary - 32, 8)[::-1] in _CLASSES:
                    return primary - 32 - _HEADER, primary
    return None


def _caught(image: CoreImage) -> _Place | None:
    """Find an exception that a handler has caught and not released.

    If such a handler calls std::terminate, the exception explains it, but the stack need not point
    to the exception any more.
    """
    for start, memory in writable_memory(image):
        for mark in _CLASSES:
            at = memory.find(mark[::-1])
            while at >= _HEADER:
                if at % 16 == 0 and _is_caught(memory[at - 40 : at - 36]):
                    return start + at - _HEADER, start + at + 32
                at = memory.find(mark[::-1], at + 8)
    return None


def _is_caught(handlers: bytes) -> bool:
    return 0 < int.from_bytes(handlers, "little", signed=True) < _HANDLERS_MAX


def _describe(image: CoreImage, demangle: Demangle, place: _Place, frames: Frames) -> Found | None:
    """Read type and message of an exception; None if it has no type."""
    header, thrown = place
    info = image.word(header)
    mangled = _type_name(image, info)
    if not mangled:
        return None
    out: Found = {"cxx_type": demangle(mangled.decode("ascii", "backslashreplace"))[:300]}
    bases = list(islice(_bases(image, info), _BASES_MAX))
    text = _value(image, mangled, thrown)
    if text is None:
        offset = next((at for name, at in bases if name in _WITH_MESSAGE and at is not None), None)
        if offset is not None:
            text = image.string(image.word(thrown + offset + 8) or 0, MESSAGE_MAX)
        if any(name == _EXCEPTION for name, _ in bases):
            said = _printed(image, frames, thrown)
            if said is not None and (text or b"") in said:  # what() of a derived class may say more
                text = said
    if text is not None and text != _PLAIN_WHAT:
        out["cxx_what"] = text_of(text) or ""
    return out


def _value(image: CoreImage, mangled: bytes, thrown: int) -> bytes | None:
    """Read an exception that is no class of its program: a text or a number."""
    if mangled in (b"PKc", b"Pc"):
        return image.string(image.word(thrown) or 0, MESSAGE_MAX)
    if number := _NUMBERS.get(mangled):
        raw = image.read(thrown, number.size)
        return f"{number.unpack(raw)[0]}".encode() if len(raw) == number.size else None
    first, second = image.word(thrown) or 0, image.word(thrown + 8) or 0
    if mangled == _STRING_VIEW:
        return image.read(second, min(first, MESSAGE_MAX))
    if mangled.startswith(b"NSt7__cxx1112basic_string"):
        return image.read(first, min(second, MESSAGE_MAX))
    if mangled.startswith(b"NSt3__112basic_stringIc"):
        return _libcxx_string(image, thrown)
    return None


def _printed(image: CoreImage, frames: Frames, thrown: int) -> bytes | None:
    """Find what what() returned: the handler of terminate() has just printed it, and fputs() left
    its address on the stack, in what is abort()'s frame now.

    An address in the object, or that the object has, is taken before one that is there repeatedly,
    which only counts if the handler is the library's own. None if there are several texts.
    """
    size, is_librarys = _printer(image, frames)
    counts = Counter(value for _, value in words_of_stack(image, size) if value > 4096)
    object_bytes = _object_bytes(image, thrown)
    words = {image.word(at) for at in range(thrown, thrown + object_bytes, 8)}
    own, others = set[bytes](), set[bytes]()
    for value, times in counts.items():
        text = image.string(value, MESSAGE_MAX)
        if not _is_text(image, text):
            continue
        if thrown <= value < thrown + object_bytes or value in words:
            own.add(text)
        elif times >= _PRINTED_TIMES and is_librarys:
            others.add(text)
    found = own or others
    return found.pop() if len(found) == 1 else None


def _printer(image: CoreImage, frames: Frames) -> tuple[int, bool]:
    """Return the size of abort()'s frames and of the handler's that called it, and whether that is
    the library's own.
    """
    names = [frame["function"] or "" for frame in frames]
    end = next((n for n, name in enumerate(names) if name.startswith(_TERMINATE)), None)
    if end is None or frames[end]["sp"] is None or "abort" not in names[:end]:
        return _PRINTER_BYTES, False
    handler = frames[names.index("abort") + 1 : end]
    size = frames[end]["sp"] - (image.head.threads[0].sp or 0)
    start = frames[end]["start"]
    return min(max(0, size), _NEAR_BYTES), all(_is_librarys(frame, start) for frame in handler)


def _is_librarys(frame: dict[str, Any], start: int | None) -> bool:
    """Return whether a frame is of the C++ library, which starts there, and may be stripped."""
    name = frame["function"] or ""
    return name.startswith(_LIBRARYS) or (not name and frame["start"] == start)


def _object_bytes(image: CoreImage, thrown: int) -> int:
    """Return the size of an exception, by what malloc() has noted before it."""
    chunk = image.word(thrown - _REFCOUNTED_HEADER - 8) or 0
    size = (chunk & ~7) - 8 - _REFCOUNTED_HEADER
    return size if 8 <= size <= _OBJECT_MAX else _OBJECT_MIN


def _is_text(image: CoreImage, raw: bytes) -> bool:
    """Return whether bytes are a text, and no address that reads as one."""
    if not PRINTABLE.fullmatch(raw) or image.segment(int.from_bytes(raw[:8], "little")):
        return False
    try:
        raw.decode()
    except UnicodeDecodeError as e:
        return e.end == MESSAGE_MAX  # it was cut within a character
    return True


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


def _bases(
    image: CoreImage, info: int | None, offset: int | None = 0, depth: int = 0
) -> Iterator[tuple[bytes, int | None]]:
    """Yield name and offset of a class, and of its bases; of virtual ones no offset.

    With one base (__si_class_type_info) it follows the name. With several (__vmi_class_type_info),
    flags and the number of bases follow, then type and offset of each base: C++ ABI, 2.9.5.
    """
    name = _type_name(image, info)
    if not info or not name or depth >= _BASES_MAX:
        return
    yield name, offset
    word = image.word(info + 16)
    if word is None:
        return
    if word & 0xFFFFFFFF > 3 or not 1 <= word >> 32 <= _BASES_MAX:
        yield from _bases(image, word, offset, depth + 1)
        return
    for at in range(info + 24, info + 24 + 16 * (word >> 32), 16):
        flags = image.word(at + 8) or 0
        distance = None if flags & 1 or offset is None else offset + (flags >> 8)
        yield from _bases(image, image.word(at), distance, depth + 1)
