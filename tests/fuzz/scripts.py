"""The readers of script interpreters, fuzzed: the memory is the input."""

from collections.abc import Callable, Sequence

from crashd.analyzers import perlstack, phpstack, rubystack
from crashd.analyzers.script import Memory, Symbol
from crashd.domain.elf.dynsym import find_symbol
from tests.builders.dynsym import START, build_exports
from tests.builders.scripts import (
    BASE,
    RUBY_TID,
    heap_bytes,
    perl_heap,
    php_heap,
    ruby_heap,
)

_CPU_SECONDS = 0.5


def exports(raw: bytes) -> object:
    """Find a symbol in a library's image."""

    def read(address: int, size: int) -> bytes:
        return raw[address - START : address - START + size] if address >= START else b""

    return find_symbol(read, START, b"symbol_two")


def exports_seeds() -> Sequence[bytes]:
    """Return an image with two symbols."""
    return [build_exports({b"symbol_one": 0x100, b"symbol_two": 0x200})]


def _reader(
    names: Sequence[bytes], read_frames: Callable[[Memory, Symbol], object]
) -> Callable[[bytes], object]:
    """Make a target: the symbols' addresses, then the memory from BASE on."""

    def run(raw: bytes) -> object:
        words = [int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n in range(len(names))]
        symbols = dict(zip(names, words, strict=True))
        heap = raw[8 * len(names) :]

        def read(address: int, size: int) -> bytes:
            return heap[address - BASE : address - BASE + size] if address >= BASE else b""

        return read_frames(Memory(read, _CPU_SECONDS), symbols.__getitem__)

    return run


_PHP = (b"executor_globals",)
php = _reader(_PHP, phpstack.read_frames)


def php_seeds() -> Sequence[bytes]:
    """Return stacks of all layouts."""
    return [heap_bytes(php_heap(version), _PHP) for version in ("8.2.36", "8.3.6", "8.4.27")]


_PERL = (b"PL_curinterp", b"PL_revision", b"PL_version", b"PL_interp_size")
perl = _reader(_PERL, perlstack.read_frames)


def perl_seeds() -> Sequence[bytes]:
    """Return two stacks of contexts."""
    return [heap_bytes(perl_heap(), _PERL)]


_RUBY = (b"ruby_version", b"context")


def _ruby(memory: Memory, symbol: Symbol) -> object:
    return rubystack.read_frames(memory, symbol, RUBY_TID, [symbol(b"context")])


ruby = _reader(_RUBY, _ruby)


def ruby_seeds() -> Sequence[bytes]:
    """Return stacks of both layouts."""
    heaps = [ruby_heap(version) for version in ("3.1.2", "3.3.8")]
    for heap in heaps:
        heap.symbols[b"context"] = heap.context
    return [heap_bytes(heap, _RUBY) for heap in heaps]
