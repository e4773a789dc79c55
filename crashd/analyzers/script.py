"""What the readers of script interpreters share: a frame, memory that is read strictly, and the
analyzer that turns what a reader finds into facts.

A reader follows the interpreter's own structures, whose offsets it has in a table by version. It
never guesses: for a version that is in no table, and for a pointer, a text or a count that cannot
be right, it raises UnreadableError, and the reason is the result. Time and depth are bounded,
because every byte comes from the crashed process.
"""

import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from struct import iter_unpack
from typing import Any, ClassVar, Literal

from crashd.analyzers.analyzer import Analyzer
from crashd.analyzers.coreimage import PF_W, CoreImage
from crashd.domain.elf.auxv import AT_EXECFN, AT_PHDR
from crashd.domain.elf.dynsym import ReadAt, find_symbol
from crashd.domain.elf.elfnotes import EM_X86_64

FRAMES_MAX = 128
NAME_MAX = 400
"""Bytes of a function's name."""
PATH_MAX = 1024
"""Bytes of a file's name."""
LINE_MAX = 1 << 24
STACK_BYTES = 256 << 10
"""Of a thread's own stack that are searched."""
CPU_SECONDS = 2.0
"""For one reader; one takes milliseconds."""


class UnreadableError(Exception):
    """The interpreter's memory cannot be what its version says, or the version is not known."""


Symbol = Callable[[bytes], int]
"""Returns the address of a symbol that the interpreter must export."""


class MissingError(UnreadableError):
    """What was read as an address is none."""


@dataclass(frozen=True, slots=True)
class ScriptFrame:
    """One call on a script's stack."""

    function: str
    file: str
    line: int | None


ScriptStack = tuple[list[ScriptFrame], bool]
"""Frames, callee first, and whether there are more."""


class Memory:
    """A core's memory, little-endian, read strictly: what is not there raises UnreadableError."""

    def __init__(self, read: ReadAt, cpu_seconds: float = CPU_SECONDS) -> None:
        self._read = read
        self._end = time.process_time() + cpu_seconds

    def read(self, address: int, size: int) -> bytes:
        """Read exactly `size` bytes."""
        if time.process_time() > self._end:
            raise UnreadableError("reading took too long")
        raw = self._read(address, size)
        if len(raw) < size:
            raise MissingError(f"no memory at {address:#x}")
        return raw

    def uint(self, address: int, size: int) -> int:
        """Read an unsigned integer."""
        return int.from_bytes(self.read(address, size), "little")

    def pointer(self, address: int) -> int:
        """Read an address, aligned to four bytes; 0 for NULL."""
        value = self.uint(address, 8)
        if value & 3 or 0 < value < 4096:
            raise MissingError(f"no pointer at {address:#x}")
        return value

    def text(self, address: int, size: int, limit: int) -> str:
        """Read a text of a known size: not empty, UTF-8, without control characters."""
        if not 0 < size <= limit:
            raise UnreadableError(f"a text of {size} bytes at {address:#x}")
        return _text(self.read(address, size))

    def string(self, address: int, limit: int) -> str:
        """Read a text that ends with NUL, of fewer than `limit` bytes."""
        raw, mark, _ = self._read(address, limit).partition(b"\0")
        if not mark or not raw:
            raise UnreadableError(f"no text at {address:#x}")
        return _text(raw)


def _stack_words(image: CoreImage, starts: Iterable[int]) -> Iterator[int]:
    """Yield the different words on stacks that may be addresses in writable memory, from each start
    on up to STACK_BYTES.
    """
    seen: set[int] = set()
    for start in dict.fromkeys(starts):
        raw = image.read(start & -8, STACK_BYTES)
        for (word,) in iter_unpack("<Q", raw[: len(raw) & -8]):
            if word & 7 or word in seen:
                continue
            seen.add(word)
            segment = image.segment(word)
            if segment is not None and segment.flags & PF_W:
                yield word


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UnreadableError("a text is not UTF-8") from e
    if not text.isprintable():
        raise UnreadableError("a text has control characters")
    return text


class ScriptStacks(Analyzer):
    """The stack of one interpreted language; `modules` decides whether a program is of it."""

    kind: ClassVar[Literal["php", "perl", "ruby", "lua"]]
    modules: ClassVar[re.Pattern[bytes]]
    """File names of the interpreter's executable and library."""

    def applies(self) -> bool:
        """Return whether a module is an interpreter; only x86-64 has tables."""
        return self.opened.image.head.machine == EM_X86_64 and bool(self._starts)

    @abstractmethod
    def read(self) -> ScriptStack:
        """Read the stack of the thread `tid`.

        Raises:
            UnreadableError: memory or version is not what the reader knows.

        """

    def facts(self) -> dict[str, Any]:
        """Read the stack, or report why there is none."""
        try:
            frames, cut = self.read()
            return {"interpreted": [self._thread(self.tid, frames, cut)] if frames else []}
        except UnreadableError as e:
            return {"interpreted": [], "problems": [f"{self.name}: {e}"]}

    @cached_property
    def memory(self) -> Memory:
        """The core's memory."""
        return Memory(self.opened.image.read)

    @cached_property
    def _starts(self) -> list[int]:
        """Where an interpreter is loaded; Ruby also maps its own files as data before it aborts."""
        image = self.opened.image
        return [
            file.module.start
            for file in self.opened.files
            if self.modules.fullmatch(file.module.name.rpartition(b"/")[2])
            and any(image.is_code(mapped.start) for mapped in file.module.files)
        ]

    def symbol(self, name: bytes) -> int:
        """Return the address of a symbol that the interpreter must export."""
        read = self.opened.image.read
        for start in self._starts:
            if (address := find_symbol(read, start, name)) is not None:
                return address
        raise UnreadableError(f"the interpreter exports no {name.decode()}")

    @property
    def is_program(self) -> bool:
        """Whether the program itself is the interpreter, and does not only embed it."""
        phdr = self.opened.image.head.auxv.get(AT_PHDR, 0)
        return any(
            self.modules.fullmatch(file.module.name.rpartition(b"/")[2])
            for file in self.opened.files
            if file.module.start <= phdr < file.module.end
        )

    @property
    def tid(self) -> int:
        """The thread whose stack is read: the one on the process's first stack, or the only one."""
        image, threads = self.opened.image, self.opened.image.head.threads
        if len(threads) == 1:
            return threads[0].tid
        first = image.segment(image.head.auxv.get(AT_EXECFN, 0))
        for thread in threads:
            if first is not None and thread.sp is not None and image.segment(thread.sp) is first:
                return thread.tid
        raise UnreadableError("no thread is on the process's first stack")

    def _thread(self, tid: int, frames: list[ScriptFrame], cut: bool) -> dict[str, Any]:
        return {
            "tid": tid,
            "crashed": False,
            "name": None,
            "frames": [self._frame(frame) for frame in frames[:FRAMES_MAX]],
            "cut": cut or len(frames) > FRAMES_MAX,
        }

    def _frame(self, frame: ScriptFrame) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "function": frame.function,
            "file": frame.file,
            "line": frame.line if frame.line and frame.line < LINE_MAX else None,
            "module": None,
            "build_id": None,
            "offset": None,
            "pc": None,
        }


class CrashedScriptStacks(ScriptStacks):
    """The stack of the crashed thread, to which only words on that thread's own stacks lead."""

    @property
    def tid(self) -> int:
        """The crashed thread."""
        return self.opened.image.head.threads[0].tid

    @property
    def starts(self) -> list[int]:
        """Where its stacks begin: where it is, and where a handler interrupted it."""
        image = self.opened.image
        places = (image.head.threads[0].sp, *image.stack_pointers[-1:])
        return [at for at in places if at is not None]

    def words(self) -> Iterator[int]:
        """Yield what is on its stacks."""
        return _stack_words(self.opened.image, self.starts)
