"""Parses the headers of a tar archive of `crashctl bundle`: regular files, POSIX.1-2001.

Strict and bounded on purpose: no links, no sparse files, no other extensions; callers compare every
size with a limit before they use it. Source: POSIX.1-2017 pax, "ustar Interchange Format".
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crashd.domain.text import printable
from crashd.errors import FormatError

BLOCK = 512
_NAME_MAX = 2048
_DIGITS_MAX = 20


@dataclass(frozen=True, slots=True)
class TarHeader:
    """One header."""

    name: str
    size_bytes: int
    is_extended: bool
    """Whether records for the next header follow (parse_records), and not a file."""


def parse_tar_header(block: bytes) -> TarHeader | None:
    """Parse a header; return None for the block of zeros at the end.

    Raises:
        FormatError: it is damaged, or describes something that bundles never contain.
    """
    if len(block) != BLOCK:
        raise FormatError("the archive is cut")
    if not any(block):
        return None
    counted = sum(block) - sum(block[148:156]) + 8 * 0x20
    if block[257:262] != b"ustar" or _octal(block[148:156]) != counted:
        raise FormatError("a header of the archive is damaged")
    prefix = _text(block[345:500])
    name = (f"{prefix}/" if prefix else "") + _text(block[:100])
    kind = block[156:157]
    if kind not in b"0\0x":
        raise FormatError(f"the bundle has {printable(name)}, which is not a file")
    return TarHeader(name, _octal(block[124:136]), kind == b"x")


def parse_records(raw: bytes) -> dict[str, str]:
    """Parse the records of an extended header.

    Raises:
        FormatError: the records are malformed.
    """
    found: dict[str, str] = {}
    while raw:
        digits, space, _ = raw[:_DIGITS_MAX].partition(b" ")
        size = int(digits) if digits.isdigit() else 0
        record = raw[len(digits) + 1 : size]
        key, equals, value = record[:-1].partition(b"=")
        if not (space and equals and key) or size > len(raw) or record[-1:] != b"\n":
            raise FormatError("an extended header of the archive is damaged")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        raw = raw[size:]
    return found


def apply_records(header: TarHeader, records: Mapping[str, str]) -> TarHeader:
    """Apply name and size of the records to the header of a file; ignore other records.

    Raises:
        FormatError: the size is malformed, the name is too long, or the file is sparse.
    """
    if any(key.startswith("GNU.sparse.") for key in records):
        raise FormatError(f"the bundle has {printable(header.name)}, which is sparse")
    size, name = records.get("size", str(header.size_bytes)), records.get("path", header.name)
    if not (size.isascii() and size.isdigit() and len(size) <= _DIGITS_MAX):
        raise FormatError("an extended header of the archive is damaged")
    if len(name) > _NAME_MAX:
        raise FormatError("a name in the archive is too long")
    return TarHeader(name, int(size), header.is_extended)


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits or digits.strip(b"01234567"):
        raise FormatError("a header of the archive is damaged")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
