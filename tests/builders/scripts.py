"""The memory of script interpreters, built structure by structure, and the symbols in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crashd.analyzers.script import Memory, UnreadableError

BASE = 0x10000
SIZE = 1 << 16


@dataclass
class Heap:
    """Memory from BASE on, into which structures are put; symbols have addresses in it."""

    data: bytearray = field(default_factory=lambda: bytearray(SIZE))
    used: int = BASE
    symbols: dict[bytes, int] = field(default_factory=dict)

    def room(self, size: int) -> int:
        """Return the address of new memory, all zeros."""
        at = self.used
        self.used = (at + size + 15) & -16
        assert self.used <= BASE + SIZE
        return at

    def put(self, data: bytes) -> int:
        """Put bytes; return their address."""
        at = self.room(len(data))
        self.write(at, data)
        return at

    def write(self, at: int, data: bytes) -> None:
        """Overwrite bytes at an address."""
        self.data[at - BASE : at - BASE + len(data)] = data

    def words(self, at: int, values: Mapping[int, int], size: int = 8) -> None:
        """Write integers of `size` bytes, by their offset from an address."""
        for offset, value in values.items():
            self.write(at + offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def read(self, address: int, size: int) -> bytes:
        """Read as a core does: short at the end."""
        return bytes(self.data[address - BASE : address - BASE + size]) if address >= BASE else b""

    def symbol(self, name: bytes) -> int:
        """Find a symbol as an analyzer does."""
        if name not in self.symbols:
            raise UnreadableError("no symbol")
        return self.symbols[name]

    @property
    def memory(self) -> Memory:
        """As a reader sees it."""
        return Memory(self.read)


@dataclass
class PhpHeap(Heap):
    """PHP's globals, its constants, and a stack."""

    version: str = "8.2.36"
    last: int = 0
    """The newest zend_execute_data."""

    def __post_init__(self) -> None:
        self.symbols[b"executor_globals"] = self.room(2048)
        value = self.put(self._string(self.version))
        constant = self.room(32)
        self.words(constant, {0: value})
        size, mask = 8, 0xFFFFFFF0
        data = self.room(4 * 16 + 32 * size) + 4 * 16
        for slot in range(-16, 0):
            self.words(data, {4 * slot: 0xFFFFFFFF}, 4)
        hashed = 5381
        for byte in b"PHP_VERSION":
            hashed = (hashed * 33 + byte) & 0xFFFFFFFF
        self.words(data, {4 * ((hashed | mask) - (1 << 32)): 3}, 4)
        self.words(data + 32 * 3, {0: constant, 24: self.put(self._string("PHP_VERSION"))})
        self.words(data + 32 * 3, {12: 0xFFFFFFFF}, 4)
        self.table = self.room(64)
        self.words(self.table, {12: mask, 32: size}, 4)
        self.words(self.table, {16: data})
        self.words(self.symbols[b"executor_globals"], {448: self.table})

    @staticmethod
    def _string(text: str) -> bytes:
        raw = text.encode()
        return bytes(16) + len(raw).to_bytes(8, "little") + raw + b"\0"

    def call(self, name: str | None, file: str, line: int, scope: str = "", kind: int = 2) -> int:
        """Push a call; return its zend_execute_data."""
        last, opcodes, filename = {
            "8.3": (76, 80, 144),
            "8.4": (96, 104, 168),
        }.get(self.version[:3], (80, 88, 152))
        function, operation, call = self.room(256), self.room(64), self.room(96)
        self.words(operation, {32 + 24: line}, 4)
        self.words(function, {0: kind}, 1)
        self.words(function, {last: 2}, 4)
        self.words(function, {opcodes: operation, filename: self.put(self._string(file))})
        if name is not None:
            self.words(function, {8: self.put(self._string(name))})
        if scope:
            entry = self.room(64)
            self.words(entry, {8: self.put(self._string(scope))})
            self.words(function, {16: entry})
        self.words(call, {0: operation + 32, 24: function, 48: self.last})
        self.last = call
        self.words(self.symbols[b"executor_globals"], {488: call})
        return call


def php_heap(version: str = "8.2.36") -> PhpHeap:
    """Build main() calling a method, with a function of C between them."""
    heap = PhpHeap(version=version)
    heap.call(None, "/srv/a.php", 14)
    heap.call("array_map", "", 1, kind=1)
    heap.call("step", "/srv/job.php", 6, scope="Job")
    return heap


@dataclass
class PerlHeap(Heap):
    """Perl's interpreter, and its stacks of contexts."""

    version: tuple[int, int] = (5, 36)
    size: int = 0

    def __post_init__(self) -> None:
        self.size = self.size or (3896 if self.version == (5, 38) else 3768)
        self.symbols[b"PL_revision"] = self.put(bytes([self.version[0]]))
        self.symbols[b"PL_version"] = self.put(bytes([self.version[1]]))
        self.symbols[b"PL_interp_size"] = self.put(self.size.to_bytes(2, "little"))
        self.interpreter = self.room(self.size)
        self.symbols[b"PL_curinterp"] = self.put(self.interpreter.to_bytes(8, "little"))
        self.stack = 0
        self.push_stack()

    def push_stack(self) -> None:
        """Begin another stack of contexts, as sort and DESTROY do."""
        stack = self.room(64)
        self.words(stack, {8: self.room(104 * 8), 16: self.stack})
        self.words(stack, {32: -1, 36: 7}, 4)
        self.words(self.interpreter, {224: stack})
        self.stack = stack

    def at(self, file: str, line: int) -> int:
        """Continue at a line; return its COP."""
        cop = self.room(88)
        self.words(cop, {36: line}, 4)
        self.words(cop, {48: self.put(file.encode() + b"\0")})
        self.words(self.interpreter, {208: cop})
        return cop

    def push(self, kind: int, sub: int = 0) -> int:
        """Push a context, which remembers the current line; return it."""
        index = (int.from_bytes(self.read(self.stack + 32, 4), "little") + 1) & 0xFFFFFFFF
        self.words(self.stack, {32: index}, 4)
        context = int.from_bytes(self.read(self.stack + 8, 8), "little") + 104 * index
        cop = int.from_bytes(self.read(self.interpreter + 208, 8), "little")
        self.words(context, {0: kind}, 1)
        self.words(context, {16: cop, 72: sub})
        return context

    def sv(self, kind: int, body: int, flags: int = 0) -> int:
        """Build the head of an SV."""
        head = self.room(24)
        self.words(head, {0: body})
        self.words(head, {12: kind | flags}, 4)
        return head

    def hek(self, text: str) -> int:
        """Build a shared key."""
        raw = text.encode()
        return self.put(bytes(4) + len(raw).to_bytes(4, "little") + raw + b"\0\0")

    def sub(self, package: str, name: str, *, named: bool = False, names: int = 0) -> int:
        """Build a CV; `named` has its name itself, and the package has `names` other names."""
        stash = self.room(96)
        key = self.hek(package)
        self.words(stash, {32: self.put(key.to_bytes(8, "little")) if names else key})
        self.words(stash, {60: names}, 4)
        package_at = self.sv(12, stash, 0x0200_0000)
        body = self.room(112)
        if named:
            self.words(body, {56: self.hek(name), 32: package_at})
            self.words(body, {92: 0x8000}, 4)
        else:
            glob = self.room(64)
            self.words(glob, {32: self.hek(name), 40: package_at})
            self.words(body, {56: self.sv(9, glob)})
        return self.sv(13, body)


def perl_heap() -> PerlHeap:
    """Build a file that calls a sub in eval {}, which sorts by another one."""
    heap = PerlHeap()
    heap.at("/srv/a.pl", 14)
    heap.push(11 | 0x40)
    heap.at("/srv/a.pl", 15)
    heap.push(9, heap.sub("main", "work", named=True))
    heap.at("/srv/a.pl", 4)
    heap.push_stack()
    heap.push(0)
    heap.push(9, heap.sub("Job", "by_name", names=2))
    heap.at("lib/Job.pm", 33)
    heap.push(2)
    return heap


RUBY_TID = 77


@dataclass
class RubyHeap(Heap):
    """A Ruby thread, its execution context, and the VM stack."""

    version: str = "3.1.2"

    def __post_init__(self) -> None:
        self.old = self.version.startswith("3.1")
        self.symbols[b"ruby_version"] = self.put(self.version.encode() + b"\0")
        self.thread, self.context = self.room(256), self.room(128)
        native = self.room(64)
        self.words(native, {24: RUBY_TID}, 4)
        if self.old:
            self.words(self.thread, {40: self.context})
            self.words(self.thread, {88: RUBY_TID}, 4)
        else:
            self.words(self.thread, {48: self.context, 40: native})
        stack = self.room(4096)
        self.end = self.cfp = stack + 4096
        self.words(self.context, {0: stack, 8: 512, 16: self.cfp, 48: self.thread})
        self.frame_size = 64 if self.old else 56
        self.call(self.code("<main>", "<main>", {0: 0}), 0)  # a thread's own frame

    def string(self, text: str) -> int:
        """Build a String: embedded if it is short."""
        raw = text.encode()
        at = self.room(64)
        if len(raw) > 20:
            self.words(at, {0: 5 | 0x2000, 16: len(raw), 24: self.put(raw)})
        elif self.old:
            self.words(at, {0: 5 | len(raw) << 14})
            self.write(at + 16, raw)
        else:
            self.words(at, {0: 5, 16: len(raw)})
            self.write(at + 24, raw)
        return at

    def code(self, label: str, path: str, lines: Mapping[int, int], size: int = 100) -> int:
        """Build instructions; `lines` are their lines by position, ascending. Return the iseq."""
        iseq, body = self.room(32), self.room(256)
        self.words(iseq, {0: 0x1A | 7 << 12, 16: body})
        paths = self.room(64)
        self.words(paths, {0: 7 | 0x2000, 16: self.string(path), 24: self.string("/real")})
        self.words(body, {4: size}, 4)
        self.words(body, {8: self.room(8 * size), 64: paths, 80: self.string(label)})
        entries = self.put(b"".join(line.to_bytes(12, "little") for line in lines.values()))
        info = body + (120 if self.old else 112)
        self.words(info, {0: entries, 24: self._ranks(list(lines), size)})
        self.words(info, {16: len(lines)}, 4)
        return iseq

    def _ranks(self, positions: Sequence[int], size: int) -> int:
        """Build a succ_index_table."""
        table = self.room(48 + 80 * (size // 512 + 1))
        for at in range(54):
            rank = sum(position <= at for position in positions)
            word = int.from_bytes(self.read(table + 8 * (at // 9), 8), "little")
            self.words(table, {8 * (at // 9): word | rank << 7 * (at % 9)})
        for number, first in enumerate(range(54, size, 512)):
            block, ranks = table + 48 + 80 * number, 0
            before = sum(position < first for position in positions)
            self.words(block, {0: before}, 4)
            for word in range(8):
                start = first + 64 * word
                inside = [p - start for p in positions if start <= p < start + 64]
                self.words(block, {16 + 8 * word: sum(1 << bit for bit in inside)})
                if word:
                    count = sum(first <= position < start for position in positions)
                    ranks |= count << 9 * (word - 1)
            self.words(block, {8: ranks})
        return table

    def call(self, iseq: int, position: int, flags: int = 0) -> int:
        """Push a control frame that has executed the instruction at `position`; return it."""
        self.cfp -= self.frame_size
        pc = 0
        if iseq and position >= 0:
            body = int.from_bytes(self.read(iseq + 16, 8), "little")
            pc = int.from_bytes(self.read(body + 8, 8), "little") + 8 * (position + 1)
        self.words(self.cfp, {0: pc, 16: iseq, 32: self.put(flags.to_bytes(8, "little"))})
        self.words(self.context, {16: self.cfp})
        return self.cfp


def ruby_heap(version: str = "3.1.2") -> RubyHeap:
    """Build a program that calls a C function with a block, which calls a long method."""
    heap = RubyHeap(version=version)
    main = heap.code("<main>", "/srv/a.rb", {0: 3, 7: 9, 20: 14})
    heap.call(main, -1)  # not begun
    heap.call(main, 19)
    heap.call(0, 0, 0x80)
    heap.call(heap.code("block in <main>", "/srv/a.rb", {0: 10}), 0)
    lines = {0: 1, 60: 2, 130: 3, 700: 4, 701: 5}
    heap.call(heap.code("step", "/srv/a/longer/path/job.rb", lines, size=800), 701)
    return heap


def heap_bytes(heap: Heap, names: Sequence[bytes]) -> bytes:
    """Pack a heap for the fuzzer: the symbols' addresses, then the memory that is used."""
    head = b"".join(heap.symbols[name].to_bytes(8, "little") for name in names)
    return head + bytes(heap.data[: heap.used - BASE])


LUA_STACK = (0x9000_0000, 0x9000_1000)
"""The thread's own stack, outside of the heap."""


@dataclass
class LuaHeap(Heap):
    """A Lua state that runs, and its calls."""

    version: str = "5.4.4"

    def __post_init__(self) -> None:
        ident = f"$LuaVersion: Lua {self.version}  Copyright (C) 1994-2022 $"
        self.symbols[b"lua_ident"] = self.put(ident.encode() + b"\0")
        self.shared = self.room(64)
        self.state = self.thread(LUA_STACK[0] + 0x800)

    def thread(self, began: int) -> int:
        """Build a state that runs on the thread's own stack since a place there."""
        state = self.room(256)
        self.words(state, {8: 8}, 1)
        self.words(state, {24: self.shared, 32: state + 96, 88: began})
        self.words(state + 96, {62: 2}, 2)  # the base is called from C
        return state

    def string(self, text: str) -> int:
        """Build a string, short or long by its length."""
        raw = text.encode()
        at = self.room(24 + len(raw))
        long = len(raw) > 40
        self.words(at, {8: 20 if long else 4, 11: 0 if long else len(raw)}, 1)
        self.words(at, {16: len(raw) if long else 0})
        self.write(at + 24, raw)
        return at

    def proto(
        self,
        code: Sequence[int],
        *,
        lines: bytes = b"",
        defined: int = 0,
        source: str = "@/srv/job.lua",
        absolute: Mapping[int, int] | None = None,
        constants: Sequence[str] = (),
        names: Sequence[tuple[str, int, int]] = (),
        upvalues: Sequence[str] = (),
    ) -> int:
        """Build a prototype; `names` are locals, each from one instruction to another."""
        at, entries = self.room(128), dict(absolute or {})
        self.words(at, {8: 10}, 1)
        lines = lines or bytes(len(code))
        sizes = {16: len(upvalues), 20: len(constants), 24: len(code), 28: len(lines)}
        self.words(at, {**sizes, 36: len(names), 40: len(entries), 44: defined}, 4)
        pairs = [value.to_bytes(4, "little") for pair in entries.items() for value in pair]
        values = self.room(16 * len(constants))
        for number, text in enumerate(constants):
            self.words(values + 16 * number, {0: self.string(text), 8: 4 | 64})
        variables, outer = self.room(16 * len(names)), self.room(16 * len(upvalues))
        for number, (text, first, end) in enumerate(names):
            self.words(variables + 16 * number, {0: self.string(text), 8: first | end << 32})
        for number, text in enumerate(upvalues):
            self.words(outer + 16 * number, {0: self.string(text)})
        instructions = self.put(b"".join(one.to_bytes(4, "little") for one in code))
        self.words(at, {56: values, 64: instructions, 80: outer, 88: self.put(lines)})
        self.words(at, {96: self.put(b"".join(pairs)), 104: variables, 112: self.string(source)})
        return at

    def call(self, state: int, proto: int | None, pc: int = 0, status: int = 0) -> int:
        """Call a function of Lua, which is at an instruction, or of C; return the CallInfo."""
        at, before = self.room(64), int.from_bytes(self.read(state + 32, 8), "little")
        self.words(at, {16: before})
        self.words(state, {32: at})
        if proto is None:
            self.words(at, {62: 2 | status}, 2)
            return at
        closure, slot = self.room(32), self.room(16)
        self.words(closure, {24: proto})
        self.words(slot, {0: closure, 8: 6 | 64})
        code = int.from_bytes(self.read(proto + 64, 8), "little")
        self.words(at, {0: slot, 32: code + 4 * (pc + 1)})
        self.words(at, {62: status}, 2)
        return at
