"""Parsers of the files below /proc/PID, see proc(5); imports only the standard library.

The texts come from the kernel, but the process chose comm, arguments and environment. No parser
here raises: a missing or damaged value becomes None or empty.
"""

import functools
import re
from dataclasses import dataclass
from typing import Final

RLIM_INFINITY: Final = 2**64 - 1
"""An unlimited resource limit, include/uapi/asm-generic/resource.h."""


OWN_NAMESPACE: Final = b"own"
"""Stands for an owner's uid: the user namespace is the reader's own."""

NUMBERS_MAX: Final = 33
"""MAX_PID_NS_LEVEL of include/linux/pid_namespace.h plus one: no list read here is longer."""

_HEX = re.compile(rb"[0-9a-f]{1,16}")
_NUMBER = re.compile(rb"[0-9]{1,20}")
_UNESCAPED = {b"\\n": b"\n", b"\\\\": b"\\"}


@dataclass(frozen=True, slots=True)
class Status:
    """The fields of /proc/PID/status that crashd needs; None or empty without such a line."""

    name: bytes = b""
    """comm, with newlines and backslashes unescaped."""
    tgid: int | None = None
    uids: tuple[int, int, int, int] | None = None
    """Real, effective, saved and file system user id."""
    gids: tuple[int, int, int, int] | None = None
    ns_tgid: tuple[int, ...] = ()
    """Thread-group id in each pid namespace: first the reader's, last the process's own."""
    core_dumping: bool = False
    vm_rss_bytes: int | None = None
    vm_swap_bytes: int | None = None
    threads: int | None = None
    seccomp: int | None = None
    """0 off, 1 strict, 2 filter: include/uapi/linux/seccomp.h."""
    groups: frozenset[int] = frozenset()
    """Supplementary groups, as the reader's user namespace numbers them."""
    effective: int = 0
    """Effective capabilities, bit by bit (linux/capability.h)."""
    permitted: int | None = None
    """Permitted capabilities, bit by bit (linux/capability.h), in its own user namespace."""


@functools.lru_cache(2)  # several steps of a capture ask about the same text
def parse_status(raw: bytes) -> Status:
    """Parse /proc/PID/status; of a key that occurs twice the last line counts.

    The kernel writes comm into the first line and escapes newlines and backslashes in it. Even
    without the escapes, the kernel's own lines would come after anything that a comm forges.
    """
    whole = raw.split(b"\n")[:-1]  # the last line may be cut in the middle of a number
    lines = dict(line.split(b":", 1) for line in whole if b":" in line)
    name = lines.get(b"Name", b"").removeprefix(b"\t")
    ns_tgid = _numbers(lines.get(b"NStgid")) or _numbers(lines.get(b"NSpid"))
    rss = _first_number(lines.get(b"VmRSS"))
    swap = _first_number(lines.get(b"VmSwap"))
    return Status(
        name=re.sub(rb"\\[n\\]", lambda match: _UNESCAPED[match.group()], name),
        tgid=_first_number(lines.get(b"Tgid")),
        uids=_four_ids(lines.get(b"Uid")),
        gids=_four_ids(lines.get(b"Gid")),
        ns_tgid=ns_tgid,
        core_dumping=_first_number(lines.get(b"CoreDumping")) == 1,
        vm_rss_bytes=None if rss is None else rss * 1024,
        vm_swap_bytes=None if swap is None else swap * 1024,
        threads=_first_number(lines.get(b"Threads")),
        seccomp=_first_number(lines.get(b"Seccomp")),
        groups=frozenset(int(w) for w in lines.get(b"Groups", b"").split() if _NUMBER.fullmatch(w)),
        effective=_hex_number(lines.get(b"CapEff")) or 0,
        permitted=_hex_number(lines.get(b"CapPrm")),
    )


def _numbers(value: bytes | None) -> tuple[int, ...]:
    """Parse a list of decimal numbers; empty if one is malformed."""
    words = (value or b"").split(maxsplit=NUMBERS_MAX)[:NUMBERS_MAX]
    return tuple(int(w) for w in words) if all(_NUMBER.fullmatch(w) for w in words) else ()


def _first_number(value: bytes | None) -> int | None:
    words = (value or b"").split(maxsplit=1)
    return int(words[0]) if words and _NUMBER.fullmatch(words[0]) else None


def _hex_number(value: bytes | None) -> int | None:
    word = (value or b"").strip()
    return int(word, 16) if _HEX.fullmatch(word) else None


def _four_ids(value: bytes | None) -> tuple[int, int, int, int] | None:
    match _numbers(value):
        case (a, b, c, d) if max(a, b, c, d) < 2**32:
            return a, b, c, d
        case _:
            return None


def parse_cmdline(raw: bytes) -> tuple[bytes, ...]:
    """Split /proc/PID/cmdline into arguments, including empty ones.

    A process that overwrote its arguments with a title may have left no final NUL.
    """
    return tuple(raw.removesuffix(b"\0").split(b"\0")) if raw else ()


def parse_environ(raw: bytes) -> tuple[bytes, ...]:
    """Split /proc/PID/environ into entries, without the empty ones that setproctitle leaves."""
    return tuple(entry for entry in raw.split(b"\0") if entry)


def parse_core_limit(limits: bytes) -> int | None:
    """Return the soft `Max core file size` in /proc/PID/limits, in bytes."""
    match = re.search(rb"^Max core file size\s+(unlimited|[0-9]{1,20})\s", limits, re.MULTILINE)
    if match is None:
        return None
    return RLIM_INFINITY if match.group(1) == b"unlimited" else int(match.group(1))


USER_NS_INIT: Final = 0xEFFFFFFD
"""Inode of the initial user namespace: USER_NS_INIT_INO, include/uapi/linux/nsfs.h."""


def parse_namespace(link: bytes) -> int | None:
    """Return the inode in a link of /proc/PID/ns, such as `mnt:[4026531832]`."""
    match = re.fullmatch(rb"[a-z_]{1,32}:\[([0-9]{1,20})\]", link)
    return int(match.group(1)) if match else None
