"""Headers of a tar archive as `crashctl bundle` writes it: regular files, POSIX.1-2001.

Strict and bounded on purpose: no links, no sparse files, no other extensions, and no size that is
believed before it was compared with a limit. Source: POSIX.1-2017 pax, "ustar Interchange Format".
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
    """What follows are records for the next header (parse_records), not a file."""


def parse_tar_header(block: bytes) -> TarHeader | None:
    """Parse a header; None for the block of zeros at the end.

    Raises:
        FormatError: it is damaged, or of something that no bundle has.

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
        raise FormatError(f"the bundle has {printable(name)}, which is no file")
    return TarHeader(name, _octal(block[124:136]), kind == b"x")


def parse_records(raw: bytes) -> dict[str, str]:
    """Parse the records of an extended header.

    Raises:
        FormatError: they are none.

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
    """Let the records say name and size of the file after them; all others change nothing here.

    Raises:
        FormatError: the size is none, the name too long, or the file sparse.

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
