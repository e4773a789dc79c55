"""The auxiliary vector that the kernel gives a process: /proc/PID/auxv, NT_AUXV of a core. Pure."""

import sys
from struct import Struct
from typing import Final, Literal

# Entry types of the auxiliary vector, include/uapi/linux/auxvec.h.
AT_NULL: Final = 0
AT_PHDR: Final = 3
AT_PHENT: Final = 4
AT_PHNUM: Final = 5
AT_BASE: Final = 7
AT_UID: Final = 11
AT_EUID: Final = 12
AT_SECURE: Final = 23
AT_EXECFN: Final = 31
AT_SYSINFO_EHDR: Final = 33

AUXV_ENTRIES_MAX: Final = 256
"""The kernel's own vector has about 25 pairs (AT_VECTOR_SIZE, include/linux/auxvec.h)."""


def parse_auxv(
    raw: bytes,
    bits: Literal[32, 64] = 64,
    byteorder: Literal["little", "big"] = sys.byteorder,
) -> dict[int, int]:
    """Parse /proc/PID/auxv or NT_AUXV into type and value, up to AT_NULL.

    If a type occurs twice, the first one counts, as for getauxval(3). An incomplete last pair and
    pairs past AUXV_ENTRIES_MAX are left out.
    """
    pair = Struct(("<" if byteorder == "little" else ">") + ("QQ" if bits == 64 else "II"))
    whole = min(len(raw) // pair.size, AUXV_ENTRIES_MAX) * pair.size
    found: dict[int, int] = {}
    for kind, value in pair.iter_unpack(raw[:whole]):
        if kind == AT_NULL:
            break
        found.setdefault(kind, value)
    return found
