"""libkdumpfile, which drgn is built with, for what drgn itself does not offer: the parts of a split
dump, read as one.

Source: libkdumpfile/kdumpfile.h. The ABI that is used here has been the same since version 0.5.2.
"""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

_MAPS_MAX: Final = 4 << 20
_NAME: Final = "/libkdumpfile"
_MACHINE_PHYSICAL: Final = 1
"""KDUMP_MACHPHYSADDR: as the pages lie in the dump; it needs no page tables."""


def load_kdumpfile() -> ctypes.CDLL | None:
    """Load the libkdumpfile that drgn uses; None if it was built without one.

    drgn must be imported already: the library has another name in each build of drgn.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        paths = (line.split(maxsplit=5)[-1].strip() for line in file.read(_MAPS_MAX).splitlines())
        path = next((path for path in paths if _NAME in path), None)
    if path is None:
        return None
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(path)
        library.kdump_new.restype = ctypes.c_void_p
        library.kdump_get_err.restype = ctypes.c_char_p
        library.kdump_get_err.argtypes = [ctypes.c_void_p]
        ints = ctypes.POINTER(ctypes.c_int)
        library.kdump_open_fdset.argtypes = [ctypes.c_void_p, ctypes.c_uint, ints]
        sizes = ctypes.POINTER(ctypes.c_size_t)
        place = [ctypes.c_int, ctypes.c_uint64]
        library.kdump_read.argtypes = [ctypes.c_void_p, *place, ctypes.c_void_p, sizes]
        return library
    return None


class DumpParts:
    """A split dump; its descriptors must stay open."""

    def __init__(self, library: ctypes.CDLL, fds: Sequence[int]) -> None:
        """Open it.

        Raises:
            ValueError: the library refuses it, with its reason.

        """
        self._library = library
        self._context = library.kdump_new()
        if not self._context:
            raise ValueError("libkdumpfile has no memory")
        array = (ctypes.c_int * len(fds))(*fds)
        if library.kdump_open_fdset(self._context, len(fds), array):
            raise ValueError(self._reason())

    def read(self, address: int, size: int) -> bytes:
        """Read physical memory.

        Raises:
            LookupError: it is not in the dump.

        """
        buffer = ctypes.create_string_buffer(size)
        length = ctypes.c_size_t(size)
        status = self._library.kdump_read(
            self._context, _MACHINE_PHYSICAL, address, buffer, ctypes.byref(length)
        )
        if status or length.value != size:
            raise LookupError(self._reason())
        return buffer.raw

    def _reason(self) -> str:
        text: bytes = self._library.kdump_get_err(self._context) or b"not in the dump"
        return text.decode("utf-8", "backslashreplace")
