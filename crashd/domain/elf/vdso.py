"""The functions of the vDSO, from its image in memory: no file has them. Pure; the image is
hostile.

Source: elf(5), vdso(7).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from crashd.domain.elf.headers import PT_DYNAMIC, PT_LOAD, find_phdrs, parse_header

IMAGE_MAX: Final = 64 << 10
"""Bytes of a vDSO; it has two or three pages."""
_SYMBOLS_MAX: Final = 256
_PHDRS_MAX: Final = 16
_DT_HASH, _DT_STRTAB, _DT_SYMTAB = 4, 5, 6
_STT_FUNC = 2
_NAME_MAX = 64
_OWN = (b"__vdso_", b"__kernel_")
"""What its own functions begin with; others are second names of these."""


class VdsoFunction(NamedTuple):
    """A function of the vDSO."""

    start: int
    """Distance from the start of the image."""
    size: int
    name: str


def parse_vdso(image: bytes) -> list[VdsoFunction]:
    """Parse the functions that a vDSO exports, ascending, each under one name; empty if it is
    damaged.
    """
    header = parse_header(image)
    if header is None:
        return []
    phdrs = list(find_phdrs(image, header, min(header.phnum, _PHDRS_MAX)))
    base = next((vaddr - at for kind, _, at, vaddr, *_ in phdrs if kind == PT_LOAD), None)
    tables = (row for row in phdrs if row[0] == PT_DYNAMIC)
    dynamic = next(((row[2], row[5]) for row in tables), None)
    if base is None or dynamic is None:
        return []
    pair = header.layout.struct("LL")
    raw = image[dynamic[0] : dynamic[0] + dynamic[1]]
    tags = dict(pair.iter_unpack(raw[: len(raw) - len(raw) % pair.size]))
    if not {_DT_SYMTAB, _DT_STRTAB} <= tags.keys():
        return []
    wide = header.layout.bits == 64
    symbol = header.layout.struct("IBBHQQ" if wide else "IIIBBH")
    table, strings = tags[_DT_SYMTAB] - base, tags[_DT_STRTAB] - base
    count = _count(image, tags, base)
    found: dict[tuple[int, int], bytes] = {}
    for number in range(count):
        at = table + number * symbol.size
        if not 0 <= at <= len(image) - symbol.size:
            break
        values = symbol.unpack_from(image, at)
        name_at, info, value, size = (
            (values[0], values[1], values[4], values[5])
            if wide
            else (values[0], values[3], values[1], values[2])
        )
        start = strings + name_at
        name = image[start : start + _NAME_MAX].split(b"\0", 1)[0] if start >= 0 else b""
        if info & 15 == _STT_FUNC and size and name.replace(b"_", b"").isalnum():
            known = found.get((value - base, size))
            if known is None or name.startswith(_OWN):
                found[value - base, size] = name
    return sorted(VdsoFunction(*where, name.decode()) for where, name in found.items())


def _count(image: bytes, tags: Mapping[int, int], base: int) -> int:
    """Return how many symbols there are at most: DT_HASH has the number, DT_GNU_HASH has not."""
    at = tags.get(_DT_HASH, 0) - base
    if _DT_HASH in tags and 0 <= at <= len(image) - 8:
        return min(int.from_bytes(image[at + 4 : at + 8], "little"), _SYMBOLS_MAX)
    return _SYMBOLS_MAX


def name_at(functions: list[VdsoFunction], offset: int) -> VdsoFunction | None:
    """Return the function that contains an offset in the image."""
    return next((f for f in functions if f.start <= offset < f.start + f.size), None)
