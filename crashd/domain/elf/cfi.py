"""How to leave a function: the rules of .eh_frame by which a caller's registers are found. Pure.

The frame description entries are hostile bytes of a process's memory: what cannot be read, or is
not of the forms that compilers write, raises ValueError, and work is bounded.

Sources: DWARF 5, 6.4 (call frame information) and 2.5 (expressions); Linux Standard Base,
"Exception Frames".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

ENTRY_MAX: Final = 64 << 10
"""Bytes of one entry."""
_STATES_MAX = 64
_REGISTERS_MAX = 128
"""A kept state is a copy of the rules of all registers."""
_STACK_MAX = 64
_ABSOLUTE, _PCREL_SDATA4 = 0x00, 0x1B
_HIGH = 0xC0

ReadAt = Callable[[int, int], bytes]
Rule = tuple[str, int | bytes]
"""`offset` and `value` (of the CFA), `register`, `at` and `is` (expressions), `undefined`."""


@dataclass(slots=True)
class Rules:
    """How the caller's registers are found at one program counter."""

    cfa: tuple[int, int] | bytes = (0, 0)
    """A register and what is added to it, or an expression."""
    registers: dict[int, Rule] = field(default_factory=dict)
    is_signal: bool = False
    """Whether the kernel made this frame for a signal's handler."""


@dataclass(frozen=True, slots=True)
class _Common:
    code_factor: int
    data_factor: int
    encoding: int
    is_signal: bool
    has_data: bool
    instructions: bytes


class Cursor:
    """Reads the numbers of an entry in order."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        """Number of bytes that were not read yet."""
        return len(self._raw) - self._at

    def take(self, size: int) -> bytes:
        """Read bytes.

        Raises:
            ValueError: there are not as many.

        """
        if not 0 <= size <= self.left:
            raise ValueError("an entry of the unwind information is cut")
        self._at += size
        return self._raw[self._at - size : self._at]

    def number(self, size: int, *, signed: bool = False) -> int:
        """Read a number of `size` bytes."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def uleb(self) -> int:
        """Read an unsigned LEB128 number."""
        return self._leb()[0]

    def sleb(self) -> int:
        """Read a signed LEB128 number."""
        value, bits = self._leb()
        return value - (1 << bits) if value >> (bits - 1) else value

    def _leb(self) -> tuple[int, int]:
        value = bits = 0
        while bits < 70:
            byte = self.number(1)
            value |= (byte & 0x7F) << bits
            bits += 7
            if byte < 0x80:
                return value, bits
        raise ValueError("a number of the unwind information is too long")

    def block(self) -> bytes:
        """Read a number of bytes, and as many bytes."""
        return self.take(self.uleb())

    def string(self) -> bytes:
        """Read up to a NUL."""
        end = self._raw.find(b"\0", self._at)
        return self.take(max(0, end - self._at) + 1)[:-1]


def find_rules(read: ReadAt, entry: int, pc: int, bits: int) -> Rules:
    """Return the rules at `pc`, by the frame description entry at the address `entry`.

    Raises:
        ValueError: they are damaged, or of an unknown form.

    """
    raw = _entry(read, entry)
    description = Cursor(raw)
    back = description.number(4)
    common = _common(_entry(read, entry + 4 - back), bits)
    if common.encoding == _PCREL_SDATA4:
        start = entry + 8 + description.number(4, signed=True)
        description.number(4)
    elif common.encoding == _ABSOLUTE:
        start = description.number(bits // 8)
        description.number(bits // 8)
    else:
        raise ValueError("the unwind information has an unknown encoding of pointers")
    if common.has_data:
        description.block()
    rules = Rules(is_signal=common.is_signal)
    program = _Program(common, rules)
    program.run(common.instructions, 1 << bits)
    program.initial = dict(rules.registers)
    program.run(description.take(description.left), pc - start)
    return rules


def _entry(read: ReadAt, address: int) -> bytes:
    size = int.from_bytes(read(address, 4), "little")
    if not 8 <= size <= ENTRY_MAX:
        raise ValueError("an entry of the unwind information has an absurd size")
    raw = read(address + 4, size)
    if len(raw) < size:
        raise ValueError("an entry of the unwind information is cut")
    return raw


def _common(raw: bytes, bits: int) -> _Common:
    """Parse a common information entry."""
    cursor = Cursor(raw)
    if cursor.number(4) != 0 or cursor.number(1) not in (1, 3):
        raise ValueError("the unwind information has an unknown version")
    letters = cursor.string()
    code_factor, data_factor = cursor.uleb(), cursor.sleb()
    cursor.uleb()  # which register is the return address
    data = Cursor(cursor.block()) if letters.startswith(b"z") else Cursor(b"")
    encoding = _ABSOLUTE
    for letter in letters[1:]:
        match chr(letter):
            case "R":
                encoding = data.number(1)
            case "L":
                data.number(1)
            case "P":
                kind = data.number(1) & 0x0F
                data.take({0: bits // 8, 2: 2, 3: 4, 4: 8, 10: 2, 11: 4, 12: 8}.get(kind, 0))
            case "S" | "B" | "G":
                pass
            case _:
                raise ValueError("the unwind information has an unknown augmentation")
    has_data = letters.startswith(b"z")
    rest = cursor.take(cursor.left)
    return _Common(code_factor, data_factor, encoding, b"S" in letters, has_data, rest)


class _Program:
    """Executes instructions until the place of interest."""

    def __init__(self, common: _Common, rules: Rules) -> None:
        self._common = common
        self._rules = rules
        self.initial: dict[int, Rule] = {}
        self._states: list[tuple[tuple[int, int] | bytes, dict[int, Rule]]] = []

    def run(self, code: bytes, distance: int) -> None:
        """Execute those instructions that apply `distance` bytes after the function's start."""
        cursor, at = Cursor(code), 0
        while cursor.left:
            opcode = cursor.number(1)
            high, low = opcode & _HIGH, opcode & ~_HIGH
            if high == 0x40 or opcode in (0x02, 0x03, 0x04):
                step = low if high else cursor.number(1 << (opcode - 2))
                at += step * self._common.code_factor
                if at > distance:
                    return
            elif high == 0x80:
                self._offset(low, cursor.uleb())
            elif high == 0xC0:
                self._restore(low)
            else:
                self._execute(opcode, cursor)

    def _offset(self, register: int, value: int, kind: str = "offset") -> None:
        self._set(register, (kind, value * self._common.data_factor))

    def _set(self, register: int, rule: Rule) -> None:
        if register >= _REGISTERS_MAX:
            raise ValueError("the unwind information has a register that no processor has")
        self._rules.registers[register] = rule

    def _restore(self, register: int) -> None:
        if register in self.initial:
            self._rules.registers[register] = self.initial[register]
        else:
            self._rules.registers.pop(register, None)

    def _execute(self, opcode: int, cursor: Cursor) -> None:
        rules = self._rules
        match opcode:
            case 0x00:
                pass
            case 0x05:
                self._offset(cursor.uleb(), cursor.uleb())
            case 0x06:
                self._restore(cursor.uleb())
            case 0x07:
                self._set(cursor.uleb(), ("undefined", 0))
            case 0x08:
                rules.registers.pop(cursor.uleb(), None)
            case 0x09:
                number = cursor.uleb()
                self._set(number, ("register", cursor.uleb()))
            case 0x0A:
                if len(self._states) >= _STATES_MAX:
                    raise ValueError("the unwind information keeps too many states")
                self._states.append((rules.cfa, dict(rules.registers)))
            case 0x0B:
                if not self._states:
                    raise ValueError("the unwind information restores a state that it has not kept")
                rules.cfa, rules.registers = self._states.pop()
            case 0x10 | 0x16:
                number = cursor.uleb()
                self._set(number, ("at" if opcode == 0x10 else "is", cursor.block()))
            case 0x11:
                self._offset(cursor.uleb(), cursor.sleb())
            case 0x14 | 0x15:
                number = cursor.uleb()
                value = cursor.uleb() if opcode == 0x14 else cursor.sleb()
                self._offset(number, value, "value")
            case 0x2E:
                cursor.uleb()  # size of the arguments
            case _:
                self._define(opcode, cursor)

    def _define(self, opcode: int, cursor: Cursor) -> None:
        """Define the CFA, the address of the caller's frame."""
        rules, factor = self._rules, self._common.data_factor
        register, offset = (0, 0) if isinstance(rules.cfa, bytes) else rules.cfa
        match opcode:
            case 0x0C:
                rules.cfa = cursor.uleb(), cursor.uleb()
            case 0x0D:
                rules.cfa = cursor.uleb(), offset
            case 0x0E:
                rules.cfa = register, cursor.uleb()
            case 0x0F:
                rules.cfa = cursor.block()
            case 0x12:
                rules.cfa = cursor.uleb(), cursor.sleb() * factor
            case 0x13:
                rules.cfa = register, cursor.sleb() * factor
            case _:
                raise ValueError(f"the unwind information has an unknown instruction {opcode:#x}")


def evaluate(
    expression: bytes,
    registers: Mapping[int, int],
    word: Callable[[int], int | None],
    bits: int,
    first: int | None = None,
) -> int:
    """Return the value of an expression that has no jumps; `first` is on the stack already.

    Raises:
        ValueError: it cannot be computed.

    """
    cursor = Cursor(expression)
    stack = [] if first is None else [first]
    while cursor.left:
        operation = cursor.number(1)
        if 0x70 <= operation <= 0x8F:
            stack.append(_known(registers.get(operation - 0x70)) + cursor.sleb())
        elif 0x30 <= operation <= 0x4F:
            stack.append(operation - 0x30)
        elif 0x08 <= operation <= 0x0F:
            size = 1 << (operation - 8) // 2
            stack.append(cursor.number(size, signed=bool(operation & 1)))
        elif operation in (0x10, 0x11):
            stack.append(cursor.uleb() if operation == 0x10 else cursor.sleb())
        elif operation == 0x03:
            stack.append(cursor.number(bits // 8))
        elif operation == 0x06:
            stack.append(_known(word(_pop(stack))))
        elif operation == 0x12:
            stack.append(_known(stack[-1] if stack else None))
        elif operation == 0x23:
            stack.append(_pop(stack) + cursor.uleb())
        else:
            second, top = _pop(stack), _pop(stack)
            stack.append(_combine(operation, top, second))
        stack[-1] &= (1 << bits) - 1
        if len(stack) > _STACK_MAX:
            raise ValueError("an expression of the unwind information is too deep")
    return _pop(stack)


def _pop(stack: list[int]) -> int:
    return _known(stack.pop() if stack else None)


def _known(value: int | None) -> int:
    if value is None:
        raise ValueError("an expression of the unwind information needs what is not known")
    return value


def _combine(operation: int, one: int, two: int) -> int:
    match operation:
        case 0x1A:
            return one & two
        case 0x1C:
            return one - two
        case 0x1E:
            return one * two
        case 0x21:
            return one | two
        case 0x22:
            return one + two
        case 0x24:
            return one << min(two, 64)
        case 0x25:
            return one >> min(two, 64)
        case 0x2A:
            return int(one >= two)
        case _:
            raise ValueError(f"an expression of the unwind information has {operation:#x}")
