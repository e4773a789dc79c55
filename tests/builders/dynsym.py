"""A shared library's exported symbols, as they are in memory."""

from collections.abc import Mapping
from struct import pack

START = 0x7F00_0000_0000


def build_exports(
    symbols: Mapping[bytes, int], *, relocated: bool = True, kind: int = 1, section: int = 5
) -> bytes:
    """Build the image of a library that is linked to address 0 and loaded at START, with one
    bucket; `relocated` is after the dynamic linker's work.
    """
    names = sorted(symbols)
    strings, entries = b"\0", bytes(24)
    for name in names:
        entries += pack("<IBBHQQ", len(strings), 0x10 | kind, 0, section, symbols[name], 8)
        strings += name + b"\0"
    hashes = [_gnu_hash(name) & ~1 for name in names]
    if hashes:
        hashes[-1] |= 1
    table = pack("<IIIIQI", 1, 1, 1, 0, 0, 1 if names else 0) + pack(f"<{len(hashes)}I", *hashes)
    at = [0x1000, 0x1000 + len(strings)]
    at.append((at[1] + len(entries) + 7) & -8)
    dynamic = (at[2] + len(table) + 7) & -8
    bias = START if relocated else 0
    rows = pack("<6Q", 5, at[0] + bias, 6, at[1] + bias, 0x6FFFFEF5, at[2] + bias) + bytes(16)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head += pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    head += pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0x2000, 0x2000, 0x1000)
    head += pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, len(rows), len(rows), 8)
    image = bytearray(dynamic + len(rows))
    for place, data in zip((0, *at, dynamic), (head, strings, entries, table, rows), strict=True):
        image[place : place + len(data)] = data
    return bytes(image)


def _gnu_hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value
