"""Names of functions inside a kernel module of which there is no file: its own symbol table, which
the kernel keeps in memory for its oops messages (CONFIG_KALLSYMS).

Everything here is the dump's, so hostile: the table is read up to a limit, and once.
"""

import bisect
import struct

import drgn

_SYMBOL = "IBBHQQ"  # Elf64_Sym
_SYMBOL_BYTES = 24
_SYMBOLS_MAX = 65_536
_NAME_MAX = 200


class ModuleSymbols:
    """The symbol table of one loaded module of a 64-bit kernel."""

    def __init__(self, program: drgn.Program, module: drgn.Object) -> None:
        """Read it from a `struct module *`; raises what drgn raises."""
        self._program = program
        table = module.kallsyms
        count = min(int(table.num_symtab), _SYMBOLS_MAX)
        self._names = int(table.strtab)
        raw = program.read(int(table.symtab), count * _SYMBOL_BYTES)
        little = program.platform is None or (
            program.platform.flags & drgn.PlatformFlags.IS_LITTLE_ENDIAN
        )
        rows = struct.iter_unpack(("<" if little else ">") + _SYMBOL, raw)
        self._rows = sorted((row[4], row[0]) for row in rows if row[3] and row[0])

    def find(self, pc: int) -> tuple[str, int] | None:
        """Return the function around an address, and where in it that is."""
        at = bisect.bisect_right(self._rows, (pc, 1 << 32)) - 1
        if at < 0:
            return None
        value = self._rows[at][0]
        first = bisect.bisect_left(self._rows, (value, 0))
        name = self._program.read_c_string(self._names + self._rows[first][1], max_size=_NAME_MAX)
        # a part of the function that the compiler moved away; the line numbers know only the whole
        text = name.decode("utf-8", "backslashreplace").partition(".cold")[0]
        return (text, pc - value) if text else None
