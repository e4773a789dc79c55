"""Last words: what a program or its runtime said about its own end, read from its memory.

Here are those of C, of its libraries and of sanitizers; each further language has a module.
"""

import re

from crashd.analyzers import cxxmessages, gomessages, rustmessages
from crashd.analyzers.coreimage import PF_W, CoreImage
from crashd.analyzers.lastwords import (
    MESSAGE_MAX,
    PRINTABLE,
    Demangle,
    Found,
    Frames,
    Symbol,
    one_line,
    text_of,
    writable_memory,
)
from crashd.domain.signals import SIGABRT, SIGILL, SIGTRAP

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
_DEAD_BYTES = 16 << 10
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
_RUST_NAMES = frozenset({"rust_begin_unwind", "rust_panic"})
_LIBC_FRAMES = 6
_PAGE, _KEPT_SEGMENT_MAX, _KEPT_TEXT_MIN = 4096, 64 << 10, 8


def collect(
    image: CoreImage,
    symbol: Symbol,
    demangle: Demangle,
    frames: Frames,
    go_panic: tuple[int, int] | None,
) -> dict[str, str]:
    """Collect the messages on the crashed thread's stack and in the runtimes' variables.

    `go_panic` is the argument of Go's panic(): addresses of type and data.
    """
    names = [frame["function"] or "" for frame in frames]
    found: Found = {
        "abort": _abort_message(image, symbol),
        "glib": _pointed(image, symbol("__glib_assert_msg")),
    }
    if any(name.startswith(_CXX_NAMES) for name in names):
        found |= cxxmessages.find_exception(image, demangle, frames)
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
        found |= rustmessages.find_panic(image, frames)
    elif (first := _first_nameless(image, frames)) is not None:
        found |= rustmessages.find_nameless_panic(image, frames, first)
        if first == 0:
            found["abort"] = found["abort"] or _kept_message(image)
            found |= {} if found["abort"] else cxxmessages.find_nameless_exception(image, demangle)
    if any(name.startswith("runtime.") for name in names):
        found |= gomessages.find(image, symbol, frames, go_panic)
    return {key: one_line(value) for key, value in found.items() if value}


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


def _abort_message(image: CoreImage, symbol: Symbol) -> str | None:
    """Read glibc's __abort_msg: a pointer to a size of 32 bits and a text (include/stdlib.h)."""
    address = symbol("__abort_msg")
    pointer = image.word(address) if address is not None else None
    return text_of(image.string(pointer + 4, MESSAGE_MAX)) if pointer else None


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
            if size == _PAGE and len(text) >= _KEPT_TEXT_MIN and PRINTABLE.fullmatch(text):
                return text_of(text)
    return None


def _pointed(image: CoreImage, address: int | None) -> str | None:
    pointer = image.word(address) if address is not None else None
    return text_of(image.string(pointer, MESSAGE_MAX)) if pointer else None


def _sanitizer(image: CoreImage) -> str | None:
    """Find the copy that a sanitizer keeps of its printed report."""
    found = next((f for _, memory in writable_memory(image) if (f := _REPORT.search(memory))), None)
    return None if found is None else text_of(found[1])


def _logged(image: CoreImage) -> str | None:
    """Find the line that a logging library (glog, Abseil) printed before it gave up: only a fatal
    one begins with F.
    """
    found = next(
        (f for _, memory in writable_memory(image) if (f := _FATAL_LINE.search(memory))), None
    )
    return None if found is None else text_of(found[1] + b": " + found[2])


def _js_exception(image: CoreImage) -> str | None:
    """Find what V8 printed of an exception that nothing caught: a string object, in which the
    length precedes the text. None if there are several texts.
    """
    said = set[bytes]()
    for _, memory in writable_memory(image):
        at = memory.find(_JS_UNCAUGHT)
        while at >= 0:
            size = int.from_bytes(memory[max(0, at - 4) : at], "little")
            text = memory[at : at + size]
            if at % 4 == 0 and len(_JS_UNCAUGHT) < size <= MESSAGE_MAX and text.isascii():
                said.add(text)
            at = memory.find(_JS_UNCAUGHT, at + 1)
    return text_of(said.pop().removeprefix(_JS_UNCAUGHT)) if len(said) == 1 else None


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
            found = text_of(image.string(value, MESSAGE_MAX)) or found
    return found


def _printed(image: CoreImage, pattern: re.Pattern[bytes]) -> str | None:
    """Find the last printed text, around the stack pointer, where recent calls left it."""
    sp = image.head.threads[0].sp or 0
    segment = image.segment(sp)
    start = max(sp - _DEAD_BYTES, segment.vaddr if segment is not None else sp)
    found = pattern.findall(image.read(start, 2 * _DEAD_BYTES))
    return text_of(found[-1]) if found else None
