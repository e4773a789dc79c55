"""The package that an ELF image says it is from: its note .note.package.

Linkers write it for Fedora, openSUSE and others; it is what the builder chose to write.

Source: systemd's "Package Metadata for Executable Files": owner FDO, type 0xcafe1a7e, and a JSON
object of strings that ends in NUL characters.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from crashd.domain.elf.elfcore import find_image_notes
from crashd.domain.elf.headers import split_notes

NT_PACKAGING_METADATA = 0xCAFE1A7E
_TEXT_MAX = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,127}", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~^_-]{0,127}", re.ASCII)


def parse_package_note(image: bytes) -> dict[str, str] | None:
    """Find name and version of the package in the first bytes of an ELF image as it lies in memory;
    None without a sound note.
    """
    for blob, layout, align in find_image_notes(image):
        for name, kind, text, whole in split_notes(blob, layout, align):
            if name == b"FDO" and kind == NT_PACKAGING_METADATA and whole:
                return _parse(text)
    return None


def _parse(text: bytes) -> dict[str, Any] | None:
    if len(text) > _TEXT_MAX:
        return None
    try:
        document = json.loads(text.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, Mapping):
        return None
    found = {key: document.get(key) for key in ("name", "version")}
    return found if is_package(**found) else None


def is_package(name: object, version: object) -> bool:
    """Return whether these may be a package's name and version, in dpkg, rpm and the like."""
    return (
        isinstance(name, str)
        and isinstance(version, str)
        and _NAME.fullmatch(name) is not None
        and _VERSION.fullmatch(version) is not None
    )
