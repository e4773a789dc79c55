"""The address of a symbol that a loaded executable or library exports, from its image in memory.
Pure; every byte may be hostile.

The dynamic linker finds a symbol by DT_GNU_HASH, and so does this: a few reads, however large the
table is.

Source: elf(5); the hash table as in glibc, elf/dl-lookup.c (do_lookup_x) and sysdeps/generic/
dl-hash.h (_dl_new_hash).
"""

from collections.abc import Callable
from typing import Final

from crashd.domain.elf.headers import PT_DYNAMIC, PT_LOAD, Header, find_phdrs, parse_header

CHAIN_MAX: Final = 1024
"""Symbols that share a bucket, at most; a linker makes buckets of one to four."""
_HEAD_BYTES = 4096
_PHDRS_MAX = 64
_DYNAMIC_MAX = 4096
_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 5, 6, 0x6FFFFEF5
_STT_TLS = 6

ReadAt = Callable[[int, int], bytes]
"""Takes address and size; returns fewer bytes where there are no more."""


def find_symbol(read: ReadAt, start: int, name: bytes) -> int | None:
    """Return the address of a symbol that the image at `start` defines; None if it does not, or is
    damaged. Symbols of thread-local variables have no address.
    """
    head = read(start, _HEAD_BYTES)
    header = parse_header(head)
    if header is None or header.layout.bits != 64:
        return None
    tables = _tables(read, start, head, header)
    if tables is None:
        return None
    hashes, symbols, strings, bias = tables
    integers = header.layout.struct("IIII")
    raw = read(hashes, integers.size)
    if len(raw) < integers.size:
        return None
    buckets, first, bloom, _ = integers.unpack(raw)
    if not buckets:
        return None
    order = header.layout.byteorder
    wanted = _gnu_hash(name)
    rows = hashes + integers.size + 8 * bloom
    index = int.from_bytes(read(rows + 4 * (wanted % buckets), 4), order)
    entry = header.layout.struct("IBBHQQ")
    for number in range(index, index + CHAIN_MAX):
        raw = read(rows + 4 * buckets + 4 * (number - first), 4) if number >= first else b""
        if len(raw) < 4:
            return None
        found = int.from_bytes(raw, order)
        if found | 1 == wanted | 1:
            symbol = read(symbols + entry.size * number, entry.size)
            if len(symbol) < entry.size:
                return None
            at, info, _, section, value, _ = entry.unpack(symbol)
            if section and info & 15 != _STT_TLS and _is_named(read, strings + at, name):
                return int(value + bias) & (1 << 64) - 1
        if found & 1:
            return None
    return None


def _tables(
    read: ReadAt, start: int, head: bytes, header: Header
) -> tuple[int, int, int, int] | None:
    """Return the addresses of hash table, symbols and strings, and how far the image was moved."""
    phdrs = list(find_phdrs(head, header, min(header.phnum, _PHDRS_MAX)))
    first = next((vaddr - at for kind, _, at, vaddr, *_ in phdrs if kind == PT_LOAD), None)
    dynamic = next(((row[3], row[5]) for row in phdrs if row[0] == PT_DYNAMIC), None)
    if first is None or dynamic is None:
        return None
    bias = start - first
    pair = header.layout.struct("LL")
    raw = read(bias + dynamic[0], min(dynamic[1], _DYNAMIC_MAX))
    tags = dict(pair.iter_unpack(raw[: len(raw) - len(raw) % pair.size]))
    if not {_DT_GNU_HASH, _DT_SYMTAB, _DT_STRTAB} <= tags.keys():
        return None
    # the dynamic linker has made these addresses, unless it is the file that was read
    hashes, symbols, strings = (
        tags[tag] if tags[tag] >= start else tags[tag] + bias
        for tag in (_DT_GNU_HASH, _DT_SYMTAB, _DT_STRTAB)
    )
    return hashes, symbols, strings, bias


def _is_named(read: ReadAt, at: int, name: bytes) -> bool:
    return read(at, len(name) + 1) == name + b"\0"


def _gnu_hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value
