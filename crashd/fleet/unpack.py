"""Unpacks objects with records, within limits: a small object may unpack to a terabyte."""

from collections.abc import Iterator
from typing import Final

from crashd.domain.fleet.lines import LINES_MAX
from crashd.errors import FormatError
from crashd.fleet.rows import Refused
from crashd.store.corefile import unzstd

OBJECT_BYTES: Final = 64 << 20
"""Limit for an object with records, packed; and for all its lines, unpacked."""


def unpack_lines(packed: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and text of each line of an object; the numbers begin at 1.

    Raises:
        Refused: the object is damaged, too large or has too many lines; the lines before count.

    """
    try:
        raw = unzstd(packed, OBJECT_BYTES + 1)
    except FormatError as e:
        raise Refused("damaged", str(e)) from e
    if len(raw) > OBJECT_BYTES:
        raise Refused("too-large", f"object unpacks to more than {OBJECT_BYTES} bytes")
    start, number = 0, 0
    while start < len(raw):
        end = raw.find(b"\n", start)
        end = len(raw) if end < 0 else end
        number += 1
        if number > LINES_MAX:
            raise Refused("too-large", f"object has more than {LINES_MAX} lines")
        yield number, raw[start:end]
        start = end + 1
