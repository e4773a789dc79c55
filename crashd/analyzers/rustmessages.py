"""The panic that ended a Rust program, read from its memory: where it was, and its message."""

import re
from itertools import pairwise

from crashd.analyzers.coreimage import PF_W, CoreImage
from crashd.analyzers.lastwords import MESSAGE_MAX, PRINTABLE, Found, Frames, words_of_stack

_FILE = re.compile(rb"[\x20-\x7e]{1,1020}\.rs")
_TEXT_MAX = 16 << 10
"""Bytes of a text that may be the message, of which MESSAGE_MAX are shown."""
_PANIC_FRAMES = 16
"""Frames from abort() to the function that panicked, at most, with a formatted message."""
_LOCATION_TIMES = 2
"""A panic passes its Location through several frames. One that was survived leaves it by chance."""


def find_panic(image: CoreImage, frames: Frames) -> Found:
    """Find the core::panic::Location (file, length, line, column) that panicked, and its message;
    the callers pass both down on the stack.
    """
    inside = [n for n, f in enumerate(frames) if "panicking::" in (f["function"] or "")]
    top = max((frames[n]["sp"] or 0 for n in inside), default=0)
    words = [word for word in words_of_stack(image) if not top or word[0] <= top + 4096]
    location = next((at for _, value in words if (at := _location(image, value))), None)
    # Search the frames of the panic itself first: their callers hold the program's own strings.
    ends = [frame["sp"] or 0 for frame in frames[inside[-1] + 1 :][:2]] if inside else []
    ends = [end for end in ends if end] or [1 << 64]
    near = [word for word in words if word[0] < ends[0]]
    own = [word for word in words if word[0] < ends[-1]]
    found = _strings(image, near) or _strings(image, own, constant=True)
    return {"rust_location": location, "rust_panic": _longest(found)}


def _longest(texts: list[str]) -> str:
    return max(texts, key=len, default="panic")[:MESSAGE_MAX]


def find_nameless_panic(image: CoreImage, frames: Frames, first: int) -> Found:
    """Find a panic's Location and message in a stripped program.

    Frames of the panic itself pass the same Location on, so it is there several times. The last
    time is next to the caller; what lies above belongs to the program.
    """
    end = frames[min(first + _PANIC_FRAMES, len(frames) - 1)]["sp"]
    words = [word for word in words_of_stack(image) if end is None or word[0] < end]
    seen: dict[int, list[int]] = {}
    for at, value in words:
        if value > 4096:
            seen.setdefault(value, []).append(at)
    repeated = [value for value, places in seen.items() if len(places) >= _LOCATION_TIMES]
    found = [v for v in repeated if _location(image, v, library=True) is not None]
    if not found:
        return {}
    last = max(seen[found[0]][-1], *(seen[value][-1] for value in found))
    near = [word for word in words if word[0] <= last]
    location = next((text for v in found if (text := _location(image, v))), None)
    texts = _strings(image, near, constant=False)
    return {"rust_location": location, "rust_panic": _longest(texts)}


def _strings(
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
        text = _string(image, pointer, length)
        if text is not None and text not in ignored:
            found.append(text)
    return found


def _location(image: CoreImage, address: int, *, library: bool = False) -> str | None:
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
    if not _FILE.fullmatch(name):
        return None
    if not library and (b"/rustc/" in name or b"/library/" in name):
        return None
    return f"{name.decode()}:{line}:{column}"


def _string(image: CoreImage, pointer: int, length: int) -> str | None:
    if pointer < 4096 or not 3 <= length <= _TEXT_MAX:
        return None
    raw = image.read(pointer, length)
    if len(raw) < length or not PRINTABLE.fullmatch(raw):
        return None
    if _FILE.fullmatch(raw) or raw.startswith(b"/"):
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
