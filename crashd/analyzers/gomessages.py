"""The fatal error or panic that ended a Go program, read from its memory."""

import re
from itertools import pairwise

from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.lastwords import MESSAGE_MAX, PRINTABLE, Found, Frames, Symbol, text_of

_BACKLOG = 512
_FRAME_MAX = 512
_WORDS_MIN = 4
_FLAG_AT, _KIND_AT, _STR_AT = 20, 23, 40  # in runtime._type, internal/abi/type.go
_FAULT = re.compile(rb"unexpected fault address 0x[0-9a-f]+(?=\n)")
_INT, _POINTER, _STRING, _STRUCT = 2, 22, 24, 25


def find(
    image: CoreImage, symbol: Symbol, frames: Frames, argument: tuple[int, int] | None
) -> Found:
    """Find a fatal error or a panic of the runtime.

    `argument` is that of panic(), if it is known: addresses of type and data.
    """
    found: Found = {"go_fatal": _fatal(image, symbol) or _thrown(image, frames)}
    argument = argument or _arguments(image, frames, ("runtime.gopanic",))
    if argument is not None:
        said = _said(image, symbol, frames)
        found["go_panic"] = _panic(image, symbol, *argument, said)
    return found


def _fatal(image: CoreImage, symbol: Symbol) -> str | None:
    """Read the last output of the runtime before it gave up; the runtime keeps it for cores
    (runtime.printBacklog in print.go).
    """
    backlog, index = symbol("runtime.printBacklog"), symbol("runtime.printBacklogIndex")
    end = image.word(index) if index is not None else None
    if backlog is None or end is None or not 0 <= end <= _BACKLOG:
        return None
    raw = image.read(backlog, _BACKLOG)
    text = (raw[end:] + raw[:end]).replace(b"\0", b"")
    before, mark, rest = text.rpartition(b"fatal error: ")
    if not mark:
        return None
    said = rest.split(b"\n", 1)[0]
    fault = _FAULT.search(before)
    return text_of(said + (b": " + fault[0] if fault else b""))


def _value(image: CoreImage, kind_at: int, data: int, name: str | None) -> str | None:
    """Read a value as its message: a string, an integer, or the string at the start of a larger
    value (errors.errorString, fmt.wrapError, runtime.errorString …).
    """
    kind = (image.read(kind_at + _KIND_AT, 1) or b"\0")[0] & 31
    if kind == _INT:
        return str(int.from_bytes(image.read(data, 8), "little", signed=True))
    if kind not in (_POINTER, _STRING, _STRUCT):
        return None
    first, second = image.word(data), image.word(data + 8)
    if first is None or second is None:
        return None
    raw = image.read(first, second) if first > 4096 and 0 < second <= MESSAGE_MAX else b""
    if raw and len(raw) == second and PRINTABLE.fullmatch(raw):
        text = text_of(raw)
        # another type's Error() may say more than its first member
        return text if kind == _STRING or name in _MESSAGES else f"{name}: {text}"
    size, pointers = image.word(kind_at), image.word(kind_at + 8)  # runtime._type
    if kind == _STRUCT and (size, pointers) == (_BOUNDS_SIZE, 0) and second < 1 << 48:
        return _bounds(image, data, first, second)
    return None


_MESSAGES = frozenset(
    ("*errors.errorString", "*fmt.wrapError", "*fmt.wrapErrors", "runtime.errorString",
     "*runtime.plainErrorString", "runtime.plainError", "runtime.errorAddressString", None)
)  # fmt: skip
"""Types whose first member is all of their message; None if the type's name cannot be read."""
_BOUNDS = (
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
_BOUNDS_SIZE = 24


def _bounds(image: CoreImage, data: int, first: int, second: int) -> str | None:
    """Read a runtime.boundsError: x and y of eight bytes, whether x is signed, and a code."""
    signed, code = image.read(data + 16, 2).ljust(2, b"\xff")
    if signed > 1 or code >= len(_BOUNDS):
        return None
    return _BOUNDS[code].format(x=first - (1 << 64) if signed and first >> 63 else first, y=second)


def _type(image: CoreImage, symbol: Symbol, kind_at: int) -> str | None:
    """Read a type's name: a flag byte, a varint and the text, at runtime.types + type.str."""
    types = symbol("runtime.types")
    raw = image.read(kind_at + _STR_AT, 4)
    if types is None or len(raw) < 4:
        return None
    at = types + int.from_bytes(raw, "little", signed=True)
    name = image.read(at, MESSAGE_MAX + 4)
    if len(name) < 3:
        return None
    length, start = (name[1], 2) if name[1] < 128 else (name[1] & 127 | name[2] << 7, 3)
    text = name[start : start + min(length, MESSAGE_MAX)]
    if not text or not PRINTABLE.fullmatch(text):
        return None
    extra_star = (image.read(kind_at + _FLAG_AT, 1) or b"\0")[0] & 2
    return text_of(text[1:] if extra_star else text)


def _panic(
    image: CoreImage, symbol: Symbol, kind_at: int, data: int, said: str | None = None
) -> str:
    """Return the message in the argument of panic(), or at least the argument's type; `said` is
    what its Error() or String() returned.
    """
    name = _type(image, symbol, kind_at)
    if name == "*runtime.TypeAssertionError":
        # the interface, the concrete and the asserted type, and the missing method
        words = [image.word(data + 8 * index) or 0 for index in range(3)]
        wanted = [_type(image, symbol, word) if word else None for word in words]
        has, is_not = wanted[1] or "nil", wanted[2] or "another type"
        return f"interface conversion: {wanted[0] or 'interface'} is {has}, not {is_not}"
    if not kind_at:
        return "nil"
    value = _value(image, kind_at, data, name)
    if said is not None and (value is None or value.startswith(f"{name}: ")):
        return f"{name}: {said}"
    if value is not None:
        return value
    return f"a value of type {name}" if name else "panic"


def _said(image: CoreImage, symbol: Symbol, frames: Frames) -> str | None:
    """Read what Error() or String() of the argument of panic() returned: before it prints that, the
    runtime puts it in the place of the argument, in the frame of gopanic() (runtime._panic).
    """
    for frame, caller in pairwise(frames):
        if frame["function"] != "runtime.gopanic" or None in (frame["sp"], caller["sp"]):
            continue
        end = min(caller["sp"], frame["sp"] + _FRAME_MAX)
        for at in range(frame["sp"], end - 16, 8):
            kind_at, data = image.word(at) or 0, image.word(at + 8) or 0
            argp = image.word(at - 8)  # of a function that is deferred; it is before the argument
            if argp != 0 and (argp is None or abs(argp - frame["sp"]) > _FRAME_MAX):
                continue
            kind = (image.read(kind_at + _KIND_AT, 1) or b"\0")[0] & 31
            if kind == _STRING and _type(image, symbol, kind_at) == "string":
                return _value(image, kind_at, data, "string")
        return None
    return None


def _thrown(image: CoreImage, frames: Frames) -> str | None:
    """Read the argument of runtime.throw() in a stripped program: its frame holds the string, among
    the arguments for the function that prints it on the system stack.
    """
    for frame, caller in pairwise(frames):
        if frame["function"] not in ("runtime.throw", "runtime.fatal") or None in (
            frame["sp"],
            caller["sp"],
        ):
            continue
        for at in range(frame["sp"], min(caller["sp"], frame["sp"] + _FRAME_MAX), 8):
            pointer, size = image.word(at), image.word(at + 8)
            if pointer and size and _WORDS_MIN <= size <= MESSAGE_MAX:
                raw = image.read(pointer, size)
                if len(raw) == size and PRINTABLE.fullmatch(raw):
                    return text_of(raw)
    return None


def _arguments(image: CoreImage, frames: Frames, names: tuple[str, ...]) -> tuple[int, int] | None:
    """Read the first two argument words of a Go function, from above its return address.

    The caller leaves room there, and the function spills the registers that it needs again
    (cmd/compile/abi-internal.md, "Stack layout"). This works without debug information.
    """
    for frame, caller in pairwise(frames):
        if frame["function"] in names and caller["sp"] is not None:
            first, second = image.word(caller["sp"]), image.word(caller["sp"] + 8)
            return None if first is None or second is None else (first, second)
    return None
