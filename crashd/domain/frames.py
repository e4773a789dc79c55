"""Messages on the control socket: a length, u32 little-endian, then that many bytes of JSON."""

import json
import struct
from typing import Any

from crashd.errors import FormatError

HEADER_SIZE = 4
REQUEST_MAX = 64 << 10
ANSWER_MAX = 64 << 20
_HEADER = struct.Struct("<I")


def pack(document: dict[str, Any]) -> bytes:
    """Build one message."""
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )
    return pack_size(len(raw)) + raw


def pack_size(size: int) -> bytes:
    """Build the length of a message of so many bytes."""
    return _HEADER.pack(size)


def parse_size(header: bytes, limit: int) -> int:
    """Parse the length; at most `limit`.

    Raises:
        FormatError: cut, zero, or over the limit.

    """
    if len(header) != HEADER_SIZE:
        raise FormatError("message ends within its length")
    (size,) = _HEADER.unpack(header)
    if not 0 < size <= limit:
        raise FormatError(f"message of {size} bytes, at most {limit} are taken")
    return int(size)


def parse(raw: bytes) -> dict[str, Any]:
    """Parse the JSON of one message.

    Raises:
        FormatError: not a JSON object.

    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise FormatError("message is not JSON") from e
    if not isinstance(document, dict):
        raise FormatError("message is not a JSON object")
    return document
