"""The PHP stack of a crashed interpreter, from executor_globals, which PHP exports.

    executor_globals ─ current_execute_data ─▶ zend_execute_data ─ prev_execute_data ─▶ …
                                                │ opline ─▶ zend_op.lineno
                                                └ func ─▶ zend_op_array: function_name, filename

The version is PHP's own constant PHP_VERSION, in the table of constants: the size of
executor_globals changes between security updates of one version, so it says nothing. Builds for
threads (ZTS) keep these globals elsewhere and export no executor_globals.

Source: Zend/zend_globals.h, zend_compile.h, zend_types.h, zend_string.h of PHP 8.2.36 and 8.4.27
(php8.2-dev, php8.4-dev of Debian) and 8.3.6 (php8.3-dev of Ubuntu 24.04), all for 64-bit.
"""

import re
from dataclasses import dataclass

from crashd.analyzers.script import (
    FRAMES_MAX,
    NAME_MAX,
    PATH_MAX,
    Memory,
    ScriptFrame,
    ScriptStack,
    ScriptStacks,
    Symbol,
    UnreadableError,
)

_ZEND_CONSTANTS, _CURRENT_EXECUTE_DATA = 448, 488  # zend_executor_globals, in all of _LAYOUTS
_OPLINE, _FUNC, _PREVIOUS = 0, 24, 48  # zend_execute_data
_FUNCTION_NAME, _SCOPE = 8, 16  # zend_op_array, zend_class_entry has its name at 8, too
_LINENO, _OP_SIZE = 24, 32  # zend_op
_STRING_LENGTH, _STRING_VALUE = 16, 24  # zend_string
_MASK, _DATA, _TABLE_SIZE = 12, 16, 32  # HashTable
_BUCKET_VALUE, _BUCKET_NEXT, _BUCKET_KEY = 0, 12, 24
_CHAIN_MAX = 64
_TABLE_MAX = 1 << 20
_USER_FUNCTION, _INTERNAL_FUNCTION, _EVAL_CODE = 2, 1, 4
_VERSION = re.compile(r"(\d+\.\d+)\.\d[\w.+~-]*")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Offsets in zend_op_array that differ."""

    last: int
    opcodes: int
    filename: int


_LAYOUTS = {
    "8.2": _Layout(80, 88, 152),
    "8.3": _Layout(76, 80, 144),
    "8.4": _Layout(96, 104, 168),
}


class PhpStacks(ScriptStacks):
    """The stack of PHP's only thread."""

    name = "PHP stack"
    kind = "php"
    modules = re.compile(rb"(php|php-fpm|php-cgi|libphp)(-?\d+(\.\d+)?)?(\.so[.\d]*)?")

    def read(self) -> ScriptStack:
        """Read the only stack."""
        return read_frames(self.memory, self.symbol)


def read_frames(memory: Memory, symbol: Symbol) -> ScriptStack:
    """Read the frames of functions in scripts, and whether there are more.

    Raises:
        UnreadableError: the version is unknown, or the memory damaged.

    """
    globals_at = symbol(b"executor_globals")
    version = _read_version(memory, memory.pointer(globals_at + _ZEND_CONSTANTS))
    layout = _LAYOUTS.get(version)
    if layout is None:
        raise UnreadableError(f"PHP {version} is not one of {', '.join(_LAYOUTS)}")
    return _walk(memory, layout, memory.pointer(globals_at + _CURRENT_EXECUTE_DATA))


def _read_version(memory: Memory, table: int) -> str:
    """Return the first two numbers of PHP_VERSION in the HashTable of constants."""
    name = "PHP_VERSION"
    size = memory.uint(table + _TABLE_SIZE, 4)
    mask = memory.uint(table + _MASK, 4)
    data = memory.pointer(table + _DATA)
    if not 8 <= size <= _TABLE_MAX or size & size - 1 or mask != -2 * size & 0xFFFFFFFF:
        raise UnreadableError("the table of constants is damaged")
    slot = (_hash(name) | mask) - (1 << 32)  # the slots are in front of the buckets
    index = memory.uint(data + 4 * slot, 4)
    for _ in range(_CHAIN_MAX):
        if index >= size:
            break
        bucket = data + 32 * index
        if _string(memory, memory.pointer(bucket + _BUCKET_KEY), NAME_MAX) == name:
            constant = memory.pointer(bucket + _BUCKET_VALUE)
            text = _string(memory, memory.pointer(constant), NAME_MAX)
            if match := _VERSION.fullmatch(text):
                return match[1]
            break
        index = memory.uint(bucket + _BUCKET_NEXT, 4)
    raise UnreadableError("PHP_VERSION is not in the table of constants")


def _hash(name: str) -> int:
    """Return the lower half of zend_inline_hash_func() (DJB's times 33)."""
    value = 5381
    for byte in name.encode():
        value = value * 33 + byte
    return value & 0xFFFFFFFF


def _walk(memory: Memory, layout: _Layout, at: int) -> tuple[list[ScriptFrame], bool]:
    """Return the frames of functions in scripts, and whether there are more."""
    frames: list[ScriptFrame] = []
    for _ in range(4 * FRAMES_MAX):  # internal functions are between them
        if not at or len(frames) == FRAMES_MAX:
            return frames, bool(at)
        function = memory.pointer(at + _FUNC)
        if function:
            kind = memory.uint(function, 1)
            if kind in (_USER_FUNCTION, _EVAL_CODE):
                frames.append(_frame(memory, layout, at, function))
            elif kind != _INTERNAL_FUNCTION:
                raise UnreadableError(f"a function of kind {kind}")
        at = memory.pointer(at + _PREVIOUS)
    return frames, True


def _frame(memory: Memory, layout: _Layout, at: int, function: int) -> ScriptFrame:
    file = _string(memory, memory.pointer(function + layout.filename), PATH_MAX)
    name_at = memory.pointer(function + _FUNCTION_NAME)
    name = _string(memory, name_at, NAME_MAX) if name_at else "{main}"
    if name.startswith("{closure:"):  # since 8.4 with the line, which signatures leave out
        name = "{closure}"
    scope = memory.pointer(function + _SCOPE) if name_at else 0
    if scope:
        name = f"{_string(memory, memory.pointer(scope + 8), NAME_MAX)}::{name}"
    return ScriptFrame(name, file, _line(memory, layout, at, function))


def _line(memory: Memory, layout: _Layout, at: int, function: int) -> int | None:
    """Return the line of the instruction, if that is one of the function's."""
    opline = memory.uint(at + _OPLINE, 8)
    first = memory.pointer(function + layout.opcodes)
    inside = opline - first
    if inside % _OP_SIZE or not 0 <= inside < _OP_SIZE * memory.uint(function + layout.last, 4):
        return None  # an exception's handler, for one, is not
    return memory.uint(opline + _LINENO, 4)


def _string(memory: Memory, at: int, limit: int) -> str:
    return memory.text(at + _STRING_VALUE, memory.uint(at + _STRING_LENGTH, 8), limit)
