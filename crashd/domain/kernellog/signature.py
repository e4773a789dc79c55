"""Builds signatures: they stay the same when a kernel crashes again of the same bug. Pure.

They use only names: no addresses (KASLR), no offsets (they depend on the build), no pids, CPUs and
times.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["SIGNATURE_VERSION", "build_signature", "normal_name", "normal_words"]

SIGNATURE_VERSION: Final = "k4"
"""Raise it with every change to what is hashed, or to how titles are built."""

_CLONE = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv|localalias|warm)(?:\.\d+)*)+$")
_PREFIX = re.compile(r"^(?:__pfx_|\.(?=\w))")
_SYSCALL = re.compile(
    r"^__(?:arm64|ia32|loongarch|mips|powerpc|riscv|s390x?|x32|x64|se|do)_(?:compat_)?(?=sys_)"
)
"""The wrappers of a system call, of each architecture; which of them are inlined is chance."""
_WORDS = (
    (re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?"), ""),
    (
        re.compile(r"\b(?:0x)?[0-9a-fA-F]{9,16}\b|\b(?:0x)?[0-9a-f]{8}\b(?<!0x0000[0-9a-f]{4})"),
        "ADDR",
    ),
    (re.compile(r"\b(?<![\w.])(?<!0x)\d+\b(?!x)"), "N"),
)
_SPACES = re.compile(r"\s+")


def normal_name(function: str) -> str:
    """Strip what a compiler or an architecture adds to a function's name."""
    return _CLONE.sub("", _SYSCALL.sub("", _PREFIX.sub("", function))) or function


def normal_words(words: str) -> str:
    """Remove from a message what differs between boots."""
    for pattern, instead in _WORDS:
        words = pattern.sub(instead, words)
    return _SPACES.sub(" ", words).strip()


def build_signature(kind: str, title: str, functions: Iterable[str]) -> str:
    """Build a signature, such as k4-0123456789abcdef, from kind, title and functions to blame."""
    digest = hashlib.sha256()
    for part in (kind, title, *(normal_name(function) for function in functions)):
        raw = part.encode("utf-8", "backslashreplace")
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return f"{SIGNATURE_VERSION}-{digest.hexdigest()[:16]}"
