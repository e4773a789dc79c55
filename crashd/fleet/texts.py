"""Texts as PostgreSQL takes them. Pure."""

import re
from typing import Final

INDEXED_MAX: Final = 400
"""Characters of a text in an index; a B-tree takes 2704 bytes."""
SURROGATE: Final = re.compile("[\ud800-\udfff]")


def text(value: bytes | str | None, longest: int = INDEXED_MAX) -> str:
    """Make a text that PostgreSQL takes, also in an index: as in JSON, without NUL, cut."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value[: longest * 4].decode("utf-8", "backslashreplace")
    return clean(value[:longest])


def clean(value: str) -> str:
    """Escape what PostgreSQL refuses in texts: NUL characters and lone surrogates."""
    if "\0" in value:
        value = value.replace("\0", "\\x00")
    return value if value.isascii() else SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", value)
