"""What the searches for last words share: the crashed thread's stack, writable memory, and text."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from crashd.analyzers.coreimage import PF_W, CoreImage

MESSAGE_MAX = 1000
PRINTABLE = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]+")
_STACK_SCAN_BYTES = 64 << 10
_LINE_END = re.compile(r"([:;,.!?]?)[ \t]*\n\s*")
_SEARCHED_BYTES_MAX, _SEGMENT_MAX = 32 << 20, 8 << 20

Symbol = Callable[[str], int | None]
Demangle = Callable[[str], str]
Frames = list[dict[str, Any]]
Found = dict[str, str | None]


def words_of_stack(image: CoreImage, size: int = _STACK_SCAN_BYTES) -> Iterator[tuple[int, int]]:
    """Yield address and value of each word on the crashed thread's stack, from its pointer on."""
    sp = image.head.threads[0].sp if image.head.threads else None
    if sp is None or image.head.bits != 64:
        return
    sp &= ~7
    raw = image.read(sp, size)
    for at in range(0, len(raw) - 7, 8):
        yield sp + at, int.from_bytes(raw[at : at + 8], image.head.byteorder)


def writable_memory(image: CoreImage) -> Iterator[tuple[int, bytes]]:
    """Yield address and bytes of writable memory, except large segments."""
    left = _SEARCHED_BYTES_MAX
    for segment in image.segments:
        if segment.flags & PF_W and 0 < segment.filesz <= min(left, _SEGMENT_MAX):
            left -= segment.filesz
            yield segment.vaddr, image.read(segment.vaddr, segment.filesz)


def text_of(raw: bytes) -> str | None:
    """Decode a message, cut at MESSAGE_MAX characters; None if it is empty."""
    return raw[:MESSAGE_MAX].decode("utf-8", "backslashreplace").strip() or None


def one_line(text: str) -> str:
    """Join the lines of a message."""
    return _LINE_END.sub(lambda end: (end[1] or ";") + " ", text)
