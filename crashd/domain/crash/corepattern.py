"""kernel.core_pattern: what crashd puts there, and whether what stands there is crashd's.

Source: core(5); fs/coredump.c. The kernel splits the pattern at white space, before it puts in
values (since 5.3), and cuts a pattern longer than PATTERN_MAX without a word.
"""

from typing import Final

from crashd.corehandler import SPECIFIERS
from crashd.errors import ConfigError

PATTERN_MAX: Final = 127
"""Bytes: CORENAME_MAX_SIZE of include/linux/binfmts.h less the NUL."""

CONTRACT: Final = tuple(f"%{letter}" for letter in SPECIFIERS[:4])
"""The arguments that every pattern of crashd's begins with."""

EXTENDED: Final = tuple(f"%{letter}" for letter in SPECIFIERS[4:])
"""What makes it race-free. For one that it does not know the kernel passes an empty argument.

A new one goes to the end of SPECIFIERS, in the Python and the C handler; coremeta.py says what it
means.
"""

SUN_PATH_MAX: Final = 107
"""Bytes of a unix socket's path, without the NUL: unix(7)."""

_HANDLER = "/usr/libexec/crashd-core"  # below any root, as crashd.store.paths has them
_SOCKET = "/run/crashd/kernel.sock"
_SPACE = " \t\n\v\f\r"  # the kernel's isspace()


def build_pattern(handler: str, *, extended: bool = True) -> str:
    """Build the pattern that pipes cores to the program `handler`.

    Raises:
        ConfigError: the kernel could not run such a path, or the pattern is too long for it.

    """
    if not handler.startswith("/"):
        raise ConfigError(f"core handler {handler!r} is not an absolute path")
    if "%" in handler or not handler.isprintable() or any(c.isspace() for c in handler):
        raise ConfigError(
            f"core handler {handler!r} holds white space, % or control characters",
            hint="the kernel would split or expand it; use a root directory without them",
        )
    pattern = " ".join(("|" + handler, *CONTRACT, *(EXTENDED if extended else ())))
    size = len(pattern.encode())
    if size > PATTERN_MAX:
        raise ConfigError(
            f"core pattern for {handler!r} has {size} bytes, the kernel takes {PATTERN_MAX}",
            hint=f"use a root directory whose path is {size - PATTERN_MAX} bytes shorter",
        )
    return pattern


def build_socket_pattern(path: str) -> str:
    """Build the pattern that has the kernel connect to the socket `path` (Linux 6.17).

    Raises:
        ConfigError: the kernel could not connect there.

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
    """Name the coredump socket of the root that `handler` is in."""
    return handler.removesuffix(_HANDLER) + _SOCKET


def root_of(pattern: str) -> str | None:
    """Return the root of the crashd that registers `pattern`; None for any other program's."""
    program = handler_of(pattern) or ""
    if pattern.startswith("@@") and pattern.endswith(_SOCKET):
        program = pattern[2:].removesuffix(_SOCKET) + _HANDLER
    if not program.endswith(_HANDLER) or not is_ours(pattern, program):
        return None
    return program.removesuffix(_HANDLER) or "/"


def handler_of(pattern: str) -> str | None:
    """Name the program of a pipe pattern; None for any other."""
    words = _words(pattern)
    return words[0] if words else None


def is_ours(pattern: str, handler: str) -> bool:
    """Tell whether `pattern` pipes to `handler` with the arguments of CONTRACT first, or has the
    kernel connect to the socket beside it.
    """
    piped = _words(pattern)[:5] == [handler, *CONTRACT]
    return piped or (bool(handler) and pattern == "@@" + socket_of(handler))


def _words(pattern: str) -> list[str]:
    """Split a pipe pattern as the kernel does: at ASCII white space only, none needed after `|`."""
    if not pattern.startswith("|"):
        return []
    for character in _SPACE:
        pattern = pattern.replace(character, " ")
    return [word for word in pattern[1:].split(" ") if word]
