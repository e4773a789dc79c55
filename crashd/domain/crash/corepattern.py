"""kernel.core_pattern: builds crashd's patterns, and recognises them.

Source: core(5); fs/coredump.c. The kernel splits the pattern at white space before it expands
specifiers (since 5.3), and silently cuts a pattern longer than PATTERN_MAX.
"""

from typing import Final

from crashd.corehandler import SPECIFIERS
from crashd.errors import ConfigError

PATTERN_MAX: Final = 127
"""Bytes: CORENAME_MAX_SIZE of include/linux/binfmts.h less the NUL."""

CONTRACT: Final = tuple(f"%{letter}" for letter in SPECIFIERS[:4])
"""The arguments that begin every pattern of crashd's."""

EXTENDED: Final = tuple(f"%{letter}" for letter in SPECIFIERS[4:])
"""The arguments that make it race-free. A kernel passes an empty argument for a specifier that it
does not know.

A new one goes to the end of SPECIFIERS, in the Python and the C handler; coremeta.py says what it
means.
"""

SUN_PATH_MAX: Final = 107
"""Bytes of a unix socket's path, without the NUL: unix(7)."""

_HANDLER = "/usr/libexec/crashd-core"  # below any root, as in crashd.store.paths
_SOCKET = "/run/crashd/kernel.sock"
_SPACE = " \t\n\v\f\r"  # the kernel's isspace()


def build_pattern(handler: str, *, extended: bool = True) -> str:
    """Build the pattern that pipes cores to the program `handler`.

    Raises:
        ConfigError: the kernel cannot run such a path, or the pattern is too long.
    """
    if not handler.startswith("/"):
        raise ConfigError(f"core handler {handler!r} is not an absolute path")
    if "%" in handler or not handler.isprintable() or any(c.isspace() for c in handler):
        raise ConfigError(
            f"core handler {handler!r} holds white space, % or control characters",
            hint="the kernel would split or expand them; use a root directory without them",
        )
    pattern = " ".join(("|" + handler, *CONTRACT, *(EXTENDED if extended else ())))
    size = len(pattern.encode())
    if size > PATTERN_MAX:
        raise ConfigError(
            f"core pattern for {handler!r} has {size} bytes, the kernel takes {PATTERN_MAX}",
            hint=f"use a root directory with a path at least {size - PATTERN_MAX} bytes shorter",
        )
    return pattern


def build_socket_pattern(path: str) -> str:
    """Build the pattern that makes the kernel connect to the socket `path` (Linux 6.17).

    Raises:
        ConfigError: the kernel cannot connect to such a path.
    """
    if not path.startswith("/") or not path.isprintable() or any(c.isspace() for c in path):
        raise ConfigError(f"coredump socket {path!r} is not a plain absolute path")
    if ".." in path.split("/") or "%" in path:
        raise ConfigError(f"coredump socket {path!r} holds .. or %")
    if len(path.encode()) > SUN_PATH_MAX:
        raise ConfigError(
            f"coredump socket {path!r} has more than {SUN_PATH_MAX} bytes",
            hint="use a shorter root directory",
        )
    return "@@" + path


def socket_of(handler: str) -> str:
    """Return the path of the coredump socket in the root of `handler`."""
    return handler.removesuffix(_HANDLER) + _SOCKET


def root_of(pattern: str) -> str | None:
    """Return the root of the crashd that registers `pattern`; None if another program does."""
    program = handler_of(pattern) or ""
    if pattern.startswith("@@") and pattern.endswith(_SOCKET):
        program = pattern[2:].removesuffix(_SOCKET) + _HANDLER
    if not program.endswith(_HANDLER) or not is_ours(pattern, program):
        return None
    return program.removesuffix(_HANDLER) or "/"


def handler_of(pattern: str) -> str | None:
    """Return the program of a pipe pattern; None for any other pattern."""
    words = _words(pattern)
    return words[0] if words else None


def is_ours(pattern: str, handler: str) -> bool:
    """Return whether `pattern` is crashd's.

    It either pipes to `handler` with the arguments of CONTRACT first, or makes the kernel
    connect to the socket of the same root.
    """
    piped = _words(pattern)[:5] == [handler, *CONTRACT]
    return piped or (bool(handler) and pattern == "@@" + socket_of(handler))


def _words(pattern: str) -> list[str]:
    """Split a pipe pattern as the kernel does: at ASCII white space, none required after `|`."""
    if not pattern.startswith("|"):
        return []
    for character in _SPACE:
        pattern = pattern.replace(character, " ")
    return [word for word in pattern[1:].split(" ") if word]
