"""Bundles, and things that are none, member by member."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping

import zstandard

CORE = b"\x7fELF" + b"c" * 5000 + bytes(300_000) + b"end"
EXE = b"\x7fELF the executable"
MODULES = [
    {"path": "/usr/bin/x", "build_id": "ab", "kind": "file", "member": "files/0/x"},
    {"path": "/usr/lib/libc.so.6", "build_id": "cd", "kind": "file", "member": "files/1/libc.so.6"},
]


def bundle_members(**changed: bytes | None) -> dict[str, bytes]:
    """Make the members of a small bundle, changed or (None) without some: core_zst is core.zst."""
    members = {
        "crash.json": json.dumps({"exe": "/usr/bin/x", "comm": "x"}).encode(),
        "report.txt": b"it crashed\n",
        "core.zst": zstandard.compress(CORE),
        "files/0/x": EXE,
        "files/1/libc.so.6": b"\x7fELF a library",
        "modules.json": json.dumps(MODULES).encode(),
    }
    for key, data in changed.items():
        name = next(name for name in members if name.replace(".", "_") == key)
        members[name] = data if data is not None else b""
        if data is None:
            del members[name]
    return members


def sum_up(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Add SHA256SUMS."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members.items())
    return {**members, "SHA256SUMS": "".join(lines).encode()}


def build_tar(members: Mapping[str, bytes]) -> bytes:
    """Pack as `crashctl bundle` does."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def build_header(name: bytes = b"crash.json", size: int = 0, kind: bytes = b"0") -> bytes:
    """Build one header, with a checksum that is right."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000600\0"
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    return seal_header(bytes(block))


def seal_header(block: bytes) -> bytes:
    """Put the checksum right."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def build_record(key: str, value: str) -> bytes:
    """Build a record of an extended header."""
    body = f" {key}={value}\n".encode()
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


def pad(data: bytes) -> bytes:
    """Fill up to whole blocks."""
    return data + bytes(-len(data) % 512)
