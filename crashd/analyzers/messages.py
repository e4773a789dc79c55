"""Last words: what a program or its runtime said about its own end, read from its memory.

The module is one idea: every section searches the same stack and data for a message, and only the
place differs by language.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from crashd.analyzers.coreimage import PF_W, CoreImage
from crashd.domain.signals import SIGABRT, SIGILL, SIGTRAP

MESSAGE_MAX = 1000
_STACK_SCAN_BYTES = 64 << 10
_CXX_CLASSES = (b"GNUCC++\0", b"CLNGC++\0")
"""Of libstdc++ and libc++; both have the same offsets."""
_CXX_DEPENDENTS = (b"GNUCC++\x01", b"CLNGC++\x01")
_CXX_HEADER = 80
"""Bytes from a 64-bit __cxa_exception to its _Unwind_Exception (libstdc++'s unwind-cxx.h)."""
_CXX_NEAR_BYTES = 4096
"""Of the stack below terminate(): abort() and what prints the exception."""
_BASES_MAX = 16
_SANITIZERS = ("__asan", "__ubsan", "__tsan", "__msan", "__lsan", "__hwasan", "__interceptor")
_REPORT = re.compile(
    rb"(?:ERROR|WARNING): ((?:[A-Z][A-Za-z]+Sanitizer|libFuzzer): [\x20-\x7e]{3,200})"
)
_FATAL_LINE = re.compile(
    rb"F(?:\d{4}|\d{8}) \d\d:\d\d:\d\d\.\d{6} +\d+ ([^\]\s]{1,200}:\d{1,6})\] ([\x20-\x7e]{1,300})"
)
_JS_UNCAUGHT = b"Uncaught "
_LOGGERS = re.compile(r"google::LogMessage|absl::(lts_\d+::)?log_internal::|logging::LogMessage")
_UBSAN_CHECK = re.compile(r"__ubsan_handle_(\w+?)(_v\d)?(_minimal)?(_abort)?$")
_UBSAN_WORDS = {
    "type_mismatch": "null, misaligned or too small object",
    "divrem_overflow": "division overflow or by zero",
}
"""Checks whose names say less than their messages."""
_NUL_TERMINATED = (1 << 64) - 1
_ASSERTED = re.compile(rb"Assertion '[\x20-\x7e]{1,200}' failed")
_SEARCHED_BYTES_MAX, _SEGMENT_MAX = 32 << 20, 8 << 20
_DEAD_BYTES = 16 << 10
_HANDLERS_MAX = 64
_WITH_MESSAGE = frozenset({b"St13runtime_error", b"St11logic_error"})
"""Their objects are a vtable and a string's address; objects of derived classes start that way."""
_PRINTABLE = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]+")
_RUST_FILE = re.compile(rb"[\x20-\x7e]{1,1020}\.rs")
_GO_BACKLOG = 512
_GO_FRAME_MAX = 512
_GO_WORDS_MIN = 4
_GO_FLAG_AT, _GO_KIND_AT, _GO_STR_AT = 20, 23, 40  # in runtime._type, internal/abi/type.go
_GO_FAULT = re.compile(rb"unexpected fault address 0x[0-9a-f]+(?=\n)")
_GO_INT, _GO_POINTER, _GO_STRING, _GO_STRUCT = 2, 22, 24, 25
_CXX_NAMES = (
    "std::terminate",
    "__cxxabiv1::__terminate",
    "__gnu_cxx::__verbose_terminate",
    "__cxa_throw",
    "__cxa_rethrow",
    "__gxx_personality",
    "__terminate",
    "__clang_call_terminate",
)
_LIBC_FRAMES = 6
_PAGE, _KEPT_SEGMENT_MAX, _KEPT_TEXT_MIN = 4096, 64 << 10, 8
_RUST_MESSAGE_MAX = 16 << 10
"""Bytes of a text that may be the message, of which MESSAGE_MAX are shown."""
_RUST_PANIC_FRAMES = 16
"""Frames from abort() to the function that panicked, at most, with a formatted message."""
_RUST_LOCATION_TIMES = 2
"""A panic passes its Location through several frames. One that was survived leaves it by chance."""
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
    """Collect the messages on the crashed thread's stack and in the runtimes' variables.

    `go_panic` is the argument of Go's panic(): addresses of type and data.
    """
    names = [frame["function"] or "" for frame in frames]
    found: dict[str, str | None] = {
        "abort": _abort_message(image, symbol),
        "glib": _pointed(image, symbol("__glib_assert_msg")),
    }
    if any(name.startswith(_CXX_NAMES) for name in names):
        found |= _cxx_exception(image, demangle)
    if any("sanitizer" in name or name.startswith(_SANITIZERS) for name in names):
        found["sanitizer"] = _sanitizer(image) or _sanitizers_check(names)
    if any(name.startswith(("g_log", "_g_log")) for name in names):
        found["glib"] = found["glib"] or _glib_message(image)
    if any(_LOGGERS.match(name) for name in names):
        found["logged"] = _logged(image)
    if any("::CreateMessageOrAbort" in name for name in names):
        found["js_exception"] = _js_exception(image)
    if any("glibcxx_assert" in name or "libcpp_verbose_abort" in name for name in names):
        found["assertion"] = _printed(image, _ASSERTED)
    if any("panicking::" in name or name in _RUST_NAMES for name in names):
        found |= _rust_panic(image, frames)
    elif (first := _first_nameless(image, frames)) is not None:
        found |= _nameless_rust_panic(image, frames, first)
        if first == 0:
            found["abort"] = found["abort"] or _kept_message(image)
            found |= {} if found["abort"] else _nameless_cxx(image, demangle)
    if any(name.startswith("runtime.") for name in names):
        found["go_fatal"] = _go_fatal(image, symbol) or _go_thrown(image, frames)
        go_panic = go_panic or _go_arguments(image, frames, ("runtime.gopanic",))
        if go_panic is not None:
            said = _go_said(image, symbol, frames)
            found["go_panic"] = _go_panic(image, symbol, *go_panic, said)
    return {key: value for key, value in found.items() if value}


# -- C ---------------------------------------------------------------------------------------------


def _abort_message(image: CoreImage, symbol: Symbol) -> str | None:
    """Read glibc's __abort_msg: a pointer to a size of 32 bits and a text (include/stdlib.h)."""
    address = symbol("__abort_msg")
    pointer = image.word(address) if address is not None else None
    return _text(image.string(pointer + 4, MESSAGE_MAX)) if pointer else None


def _kept_message(image: CoreImage) -> str | None:
    """Find what glibc said in a static program without symbols: __libc_message maps pages for it,
    which begin with their size (sysdeps/posix/libc_fatal.c).
    """
    for segment in image.segments:
        if not segment.flags & PF_W or not 0 < segment.filesz <= _KEPT_SEGMENT_MAX:
            continue
        memory = image.read(segment.vaddr, segment.filesz)
        for at in range(0, len(memory) - _PAGE + 1, _PAGE):
            size = int.from_bytes(memory[at : at + 4], "little")
            text = memory[at + 4 : at + 4 + MESSAGE_MAX].split(b"\0", 1)[0]
            if size == _PAGE and len(text) >= _KEPT_TEXT_MIN and _PRINTABLE.fullmatch(text):
                return _text(text)
    return None


def _pointed(image: CoreImage, address: int | None) -> str | None:
    pointer = image.word(address) if address is not None else None
    return _text(image.string(pointer, MESSAGE_MAX)) if pointer else None


def _text(raw: bytes) -> str | None:
    return raw[:MESSAGE_MAX].decode("utf-8", "backslashreplace").strip() or None


def _sanitizer(image: CoreImage) -> str | None:
    """Find the copy that a sanitizer keeps of its printed report."""
    found = next((f for _, memory in _writable(image) if (f := _REPORT.search(memory))), None)
    return None if found is None else _text(found[1])


def _logged(image: CoreImage) -> str | None:
    """Find the line that a logging library (glog, Abseil) printed before it gave up: only a fatal
    one begins with F.
    """
    found = next((f for _, memory in _writable(image) if (f := _FATAL_LINE.search(memory))), None)
    return None if found is None else _text(found[1] + b": " + found[2])


def _js_exception(image: CoreImage) -> str | None:
    """Find what V8 printed of an exception that nothing caught: a string object, in which the
    length precedes the text. None if there are several texts.
    """
    said = set[bytes]()
    for _, memory in _writable(image):
        at = memory.find(_JS_UNCAUGHT)
        while at >= 0:
            size = int.from_bytes(memory[max(0, at - 4) : at], "little")
            text = memory[at : at + size]
            if at % 4 == 0 and len(_JS_UNCAUGHT) < size <= MESSAGE_MAX and text.isascii():
                said.add(text)
            at = memory.find(_JS_UNCAUGHT, at + 1)
    return _text(said.pop().removeprefix(_JS_UNCAUGHT)) if len(said) == 1 else None


def _writable(image: CoreImage) -> Iterator[tuple[int, bytes]]:
    """Yield address and bytes of writable memory, except large segments."""
    left = _SEARCHED_BYTES_MAX
    for segment in image.segments:
        if segment.flags & PF_W and 0 < segment.filesz <= min(left, _SEGMENT_MAX):
            left -= segment.filesz
            yield segment.vaddr, image.read(segment.vaddr, segment.filesz)


def _sanitizers_check(names: list[str]) -> str | None:
    """Return what a sanitizer found by the names of its functions, because it keeps no report."""
    for name in names:
        if check := _UBSAN_CHECK.match(name):
            words = _UBSAN_WORDS.get(check[1], check[1].replace("_", " "))
            return f"UndefinedBehaviorSanitizer: {words}"
        if name.startswith("__msan_warning"):
            return "MemorySanitizer: use-of-uninitialized-value"
        if name.startswith("__tsan::ReportRace"):
            return "ThreadSanitizer: data race"
    return None


def _glib_message(image: CoreImage) -> str | None:
    """Find the last message that GLib logged: an array of GLogField is on the stack, or was before
    the handlers returned (glib/gmessages.h: key, value, length).
    """
    sp = (image.head.threads[0].sp or 0) & ~7
    segment = image.segment(sp)
    start = max(sp - _DEAD_BYTES, segment.vaddr if segment is not None else sp)
    raw = image.read(start, 2 * _DEAD_BYTES)
    if image.head.bits != 64:
        return None
    words = memoryview(raw[: len(raw) & ~7]).cast("Q")
    known: dict[int, bool] = {}
    found = None
    for key, value, length in zip(words, words[1:], words[2:], strict=False):
        if key < 4096 or value < 4096 or length != _NUL_TERMINATED:
            continue
        if key not in known:
            known[key] = image.read(key, 8) == b"MESSAGE\0"
        if known[key]:
            found = _text(image.string(value, MESSAGE_MAX)) or found
    return found


def _printed(image: CoreImage, pattern: re.Pattern[bytes]) -> str | None:
    """Find the last printed text, around the stack pointer, where recent calls left it."""
    sp = image.head.threads[0].sp or 0
    segment = image.segment(sp)
    start = max(sp - _DEAD_BYTES, segment.vaddr if segment is not None else sp)
    found = pattern.findall(image.read(start, 2 * _DEAD_BYTES))
    return _text(found[-1]) if found else None


# -- C++ -------------------------------------------------------------------------------------------


def _words(image: CoreImage, size: int = _STACK_SCAN_BYTES) -> Iterator[tuple[int, int]]:
    """Yield address and value of each word on the crashed thread's stack, from its pointer on."""
    sp = image.head.threads[0].sp if image.head.threads else None
    if sp is None or image.head.bits != 64:
        return
    sp &= ~7
    raw = image.read(sp, size)
    for at in range(0, len(raw) - 7, 8):
        yield sp + at, int.from_bytes(raw[at : at + 8], image.head.byteorder)


def _cxx_exception(image: CoreImage, demangle: Callable[[str], str]) -> dict[str, str | None]:
    """Find the exception that was thrown last: throw and terminate leave its address on the stack,
    and eight letters mark it (the C++ ABI's exception handling, 2.2).
    """
    seen = set[int]()
    for _, value in _words(image):
        if value in seen or value & 15 or value < 4096:
            continue
        seen.add(value)
        mark = image.read(value, 8)
        if mark in _CXX_CLASSES or mark[::-1] in _CXX_CLASSES:
            return _thrown(image, demangle, value - _CXX_HEADER, value + 32)
        if mark in _CXX_DEPENDENTS or mark[::-1] in _CXX_DEPENDENTS:
            # __cxa_dependent_exception: its header begins with the address of the primary's object
            for at in (0, 8, 16):
                primary = image.word(value - _CXX_HEADER - at) or 0
                if image.read(primary - 32, 8)[::-1] in _CXX_CLASSES:
                    return _thrown(image, demangle, primary - 32 - _CXX_HEADER, primary)
    return _caught(image, demangle) or {"cxx_terminate": "true"}


def _nameless_cxx(image: CoreImage, demangle: Callable[[str], str]) -> dict[str, str | None]:
    """Find an uncaught exception in a static program without names: terminate() left its address on
    the stack, and has caught it itself.
    """
    for _, value in _words(image, _CXX_NEAR_BYTES):
        if value & 15 or value < 4096 or image.read(value, 8)[::-1] not in _CXX_CLASSES:
            continue
        handlers = int.from_bytes(image.read(value - 40, 4), "little", signed=True)
        if 0 < handlers < _HANDLERS_MAX:
            found = _thrown(image, demangle, value - _CXX_HEADER, value + 32)
            return found if "cxx_type" in found else {}
    return {}


def _caught(image: CoreImage, demangle: Callable[[str], str]) -> dict[str, str | None] | None:
    """Find an exception that a handler has caught and not released.

    If such a handler calls std::terminate, the exception explains it, but the stack need not point
    to the exception any more.
    """
    for start, memory in _writable(image):
        for mark in _CXX_CLASSES:
            at = memory.find(mark[::-1])
            while at >= _CXX_HEADER:
                handlers = int.from_bytes(memory[at - 40 : at - 36], "little", signed=True)
                if at % 16 == 0 and 0 < handlers < _HANDLERS_MAX:
                    header = start + at - _CXX_HEADER
                    return _thrown(image, demangle, header, start + at + 32)
                at = memory.find(mark[::-1], at + 8)
    return None


def _thrown(
    image: CoreImage, demangle: Callable[[str], str], header: int, thrown: int
) -> dict[str, str | None]:
    """Read type and message of the exception object at `thrown`, whose header is at `header`.

    Only types with a known layout have a message: char *, int, std::string, and the classes of
    _WITH_MESSAGE.
    """
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
    elif mangled.startswith(b"NSt3__112basic_stringIc"):
        out["cxx_what"] = _text(_libcxx_string(image, thrown)) or ""
    elif _has_message(image, info):
        out["cxx_what"] = _text(image.string(image.word(thrown + 8) or 0, MESSAGE_MAX)) or ""
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
    return raw.lstrip(b"*") if _PRINTABLE.fullmatch(raw) else b""


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


# -- Rust ------------------------------------------------------------------------------------------


def _rust_panic(image: CoreImage, frames: Frames) -> dict[str, str | None]:
    """Find the core::panic::Location (file, length, line, column) that panicked, and its message;
    the callers pass both down on the stack.
    """
    inside = [n for n, f in enumerate(frames) if "panicking::" in (f["function"] or "")]
    top = max((frames[n]["sp"] or 0 for n in inside), default=0)
    words = [word for word in _words(image) if not top or word[0] <= top + 4096]
    location = next((at for _, value in words if (at := _rust_location(image, value))), None)
    # Search the frames of the panic itself first: their callers hold the program's own strings.
    ends = [frame["sp"] or 0 for frame in frames[inside[-1] + 1 :][:2]] if inside else []
    ends = [end for end in ends if end] or [1 << 64]
    near = [word for word in words if word[0] < ends[0]]
    own = [word for word in words if word[0] < ends[-1]]
    found = _rust_strings(image, near) or _rust_strings(image, own, constant=True)
    return {"rust_location": location, "rust_panic": _longest(found)}


def _longest(texts: list[str]) -> str:
    return max(texts, key=len, default="panic")[:MESSAGE_MAX]


def _first_nameless(image: CoreImage, frames: Frames) -> int | None:
    """Return the index of the first frame without a name, if the process ended itself; None if it
    did not, or the frames have names.
    """
    info = image.head.siginfo
    if info is None or info.signal not in (SIGABRT, SIGILL, SIGTRAP):
        return None
    for index, frame in enumerate(frames[:_LIBC_FRAMES]):
        if frame["function"] is None:
            return index if frame["start"] is not None else None
    return None


def _nameless_rust_panic(image: CoreImage, frames: Frames, first: int) -> dict[str, str | None]:
    """Find a panic's Location and message in a stripped program.

    Frames of the panic itself pass the same Location on, so it is there several times. The last
    time is next to the caller; what lies above belongs to the program.
    """
    end = frames[min(first + _RUST_PANIC_FRAMES, len(frames) - 1)]["sp"]
    words = [word for word in _words(image) if end is None or word[0] < end]
    seen: dict[int, list[int]] = {}
    for at, value in words:
        if value > 4096:
            seen.setdefault(value, []).append(at)
    repeated = [value for value, places in seen.items() if len(places) >= _RUST_LOCATION_TIMES]
    found = [v for v in repeated if _rust_location(image, v, library=True) is not None]
    if not found:
        return {}
    last = max(seen[found[0]][-1], *(seen[value][-1] for value in found))
    near = [word for word in words if word[0] <= last]
    location = next((text for v in found if (text := _rust_location(image, v))), None)
    texts = _rust_strings(image, near, constant=False)
    return {"rust_location": location, "rust_panic": _longest(texts)}


def _rust_strings(
    image: CoreImage, words: list[tuple[int, int]], *, constant: bool = False
) -> list[str]:
    """Return the texts whose address and length are neighbouring words; `constant` leaves out texts
    in writable memory, such as the program's arguments.
    """
    pairs = {(first, second) for (_, first), (_, second) in pairwise(words)}
    # the program's arguments, which registers saved on the stack may point to
    ignored = {"main", *image.head.psargs.decode("utf-8", "replace").split()}  # a thread's name
    found: list[str] = []
    for pointer, length in pairs:
        # since 1.93 fmt::Arguments tags the length of a plain text: twice the length, plus one
        if length & 1 and (pointer, length >> 1) in pairs:
            continue
        if constant and (segment := image.segment(pointer)) and segment.flags & PF_W:
            continue
        text = _rust_string(image, pointer, length)
        if text is not None and text not in ignored:
            found.append(text)
    return found


def _rust_location(image: CoreImage, address: int, *, library: bool = False) -> str | None:
    """Read a core::panic::Location; None if it is none, or one of Rust's own libraries unless
    `library`.
    """
    raw = image.read(address, 24) if address > 4096 else b""
    if len(raw) < 24:
        return None
    pointer, length = (int.from_bytes(raw[i : i + 8], "little") for i in (0, 8))
    line, column = (int.from_bytes(raw[i : i + 4], "little") for i in (16, 20))
    if not 4 <= length <= 1024 or not 0 < line < 1 << 24 or not 0 < column < 1 << 16:
        return None
    name = image.read(pointer, length).rstrip(b"\0")
    if not _RUST_FILE.fullmatch(name):
        return None
    if not library and (b"/rustc/" in name or b"/library/" in name):
        return None
    return f"{name.decode()}:{line}:{column}"


def _rust_string(image: CoreImage, pointer: int, length: int) -> str | None:
    if pointer < 4096 or not 3 <= length <= _RUST_MESSAGE_MAX:
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
    """Read the last output of the runtime before it gave up; the runtime keeps it for cores
    (runtime.printBacklog in print.go).
    """
    backlog, index = symbol("runtime.printBacklog"), symbol("runtime.printBacklogIndex")
    end = image.word(index) if index is not None else None
    if backlog is None or end is None or not 0 <= end <= _GO_BACKLOG:
        return None
    raw = image.read(backlog, _GO_BACKLOG)
    text = (raw[end:] + raw[:end]).replace(b"\0", b"")
    before, mark, rest = text.rpartition(b"fatal error: ")
    if not mark:
        return None
    said = rest.split(b"\n", 1)[0]
    fault = _GO_FAULT.search(before)
    return _text(said + (b": " + fault[0] if fault else b""))


def _go_value(image: CoreImage, kind_at: int, data: int, name: str | None) -> str | None:
    """Read a value as its message: a string, an integer, or the string at the start of a larger
    value (errors.errorString, fmt.wrapError, runtime.errorString …).
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
        text = _text(raw)
        # another type's Error() may say more than its first member
        return text if kind == _GO_STRING or name in _GO_MESSAGES else f"{name}: {text}"
    size, pointers = image.word(kind_at), image.word(kind_at + 8)  # runtime._type
    if kind == _GO_STRUCT and (size, pointers) == (_GO_BOUNDS_SIZE, 0) and second < 1 << 48:
        return _go_bounds(image, data, first, second)
    return None


_GO_MESSAGES = frozenset(
    ("*errors.errorString", "*fmt.wrapError", "*fmt.wrapErrors", "runtime.errorString",
     "*runtime.plainErrorString", "runtime.plainError", "runtime.errorAddressString", None)
)  # fmt: skip
"""Types whose first member is all of their message; None if the type's name cannot be read."""
_GO_BOUNDS = (
    "index out of range [{x}] with length {y}",
    "slice bounds out of range [:{x}] with length {y}",
    "slice bounds out of range [:{x}] with capacity {y}",
    "slice bounds out of range [{x}:{y}]",
    "slice bounds out of range [::{x}] with length {y}",
    "slice bounds out of range [::{x}] with capacity {y}",
    "slice bounds out of range [:{x}:{y}]",
    "slice bounds out of range [{x}:{y}:]",
    "cannot convert slice with length {y} to array or pointer to array with length {x}",
)
"""Indexed by boundsErrorCode (runtime/error.go)."""
_GO_BOUNDS_SIZE = 24


def _go_bounds(image: CoreImage, data: int, first: int, second: int) -> str | None:
    """Read a runtime.boundsError: x and y of eight bytes, whether x is signed, and a code."""
    signed, code = image.read(data + 16, 2).ljust(2, b"\xff")
    if signed > 1 or code >= len(_GO_BOUNDS):
        return None
    return _GO_BOUNDS[code].format(
        x=first - (1 << 64) if signed and first >> 63 else first, y=second
    )


def _go_type(image: CoreImage, symbol: Symbol, kind_at: int) -> str | None:
    """Read a type's name: a flag byte, a varint and the text, at runtime.types + type.str."""
    types = symbol("runtime.types")
    raw = image.read(kind_at + _GO_STR_AT, 4)
    if types is None or len(raw) < 4:
        return None
    at = types + int.from_bytes(raw, "little", signed=True)
    name = image.read(at, MESSAGE_MAX + 4)
    if len(name) < 3:
        return None
    length, start = (name[1], 2) if name[1] < 128 else (name[1] & 127 | name[2] << 7, 3)
    text = name[start : start + min(length, MESSAGE_MAX)]
    if not text or not _PRINTABLE.fullmatch(text):
        return None
    extra_star = (image.read(kind_at + _GO_FLAG_AT, 1) or b"\0")[0] & 2
    return _text(text[1:] if extra_star else text)


def _go_panic(
    image: CoreImage, symbol: Symbol, kind_at: int, data: int, said: str | None = None
) -> str:
    """Return the message in the argument of panic(), or at least the argument's type; `said` is
    what its Error() or String() returned.
    """
    name = _go_type(image, symbol, kind_at)
    if name == "*runtime.TypeAssertionError":
        # the interface, the concrete and the asserted type, and the missing method
        words = [image.word(data + 8 * index) or 0 for index in range(3)]
        wanted = [_go_type(image, symbol, word) if word else None for word in words]
        has, is_not = wanted[1] or "nil", wanted[2] or "another type"
        return f"interface conversion: {wanted[0] or 'interface'} is {has}, not {is_not}"
    if not kind_at:
        return "nil"
    value = _go_value(image, kind_at, data, name)
    if said is not None and (value is None or value.startswith(f"{name}: ")):
        return f"{name}: {said}"
    if value is not None:
        return value
    return f"a value of type {name}" if name else "panic"


def _go_said(image: CoreImage, symbol: Symbol, frames: Frames) -> str | None:
    """Read what Error() or String() of the argument of panic() returned: before it prints that, the
    runtime puts it in the place of the argument, in the frame of gopanic() (runtime._panic).
    """
    for frame, caller in pairwise(frames):
        if frame["function"] != "runtime.gopanic" or None in (frame["sp"], caller["sp"]):
            continue
        end = min(caller["sp"], frame["sp"] + _GO_FRAME_MAX)
        for at in range(frame["sp"], end - 16, 8):
            kind_at, data = image.word(at) or 0, image.word(at + 8) or 0
            argp = image.word(at - 8)  # of a function that is deferred; it is before the argument
            if argp != 0 and (argp is None or abs(argp - frame["sp"]) > _GO_FRAME_MAX):
                continue
            kind = (image.read(kind_at + _GO_KIND_AT, 1) or b"\0")[0] & 31
            if kind == _GO_STRING and _go_type(image, symbol, kind_at) == "string":
                return _go_value(image, kind_at, data, "string")
        return None
    return None


def _go_thrown(image: CoreImage, frames: Frames) -> str | None:
    """Read the argument of runtime.throw() in a stripped program: its frame holds the string, among
    the arguments for the function that prints it on the system stack.
    """
    for frame, caller in pairwise(frames):
        if frame["function"] not in ("runtime.throw", "runtime.fatal") or None in (
            frame["sp"],
            caller["sp"],
        ):
            continue
        for at in range(frame["sp"], min(caller["sp"], frame["sp"] + _GO_FRAME_MAX), 8):
            pointer, size = image.word(at), image.word(at + 8)
            if pointer and size and _GO_WORDS_MIN <= size <= MESSAGE_MAX:
                raw = image.read(pointer, size)
                if len(raw) == size and _PRINTABLE.fullmatch(raw):
                    return _text(raw)
    return None


def _go_arguments(
    image: CoreImage, frames: Frames, names: tuple[str, ...]
) -> tuple[int, int] | None:
    """Read the first two argument words of a Go function, from above its return address.

    The caller leaves room there, and the function spills the registers that it needs again
    (cmd/compile/abi-internal.md, "Stack layout"). This works without debug information.
    """
    for frame, caller in pairwise(frames):
        if frame["function"] in names and caller["sp"] is not None:
            first, second = image.word(caller["sp"]), image.word(caller["sp"] + 8)
            return None if first is None or second is None else (first, second)
    return None
