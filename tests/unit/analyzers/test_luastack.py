"""Lua's stack out of memory that is built structure by structure."""

import pytest

from crashd.analyzers.luastack import read_frames
from crashd.analyzers.script import FRAMES_MAX, ScriptFrame, UnreadableError
from tests.builders.scripts import LUA_STACK, LuaHeap

MOVE, GETUPVAL, GETTABUP, GETTABLE, GETFIELD, SELF = 0, 9, 11, 12, 14, 20
ADD, JMP, TEST, CALL, TAILCALL, TFORCALL, RETURN = 34, 56, 66, 68, 69, 76, 70


def op(code: int, a: int = 0, b: int = 0, c: int = 0, k: int = 0) -> int:
    return code | a << 7 | k << 15 | b << 16 | c << 24


def jump(distance: int) -> int:
    return JMP | (distance + 0xFFFFFF) << 7


def read(heap: LuaHeap, *words: int) -> tuple[list[ScriptFrame], bool]:
    return read_frames(heap.memory, heap.symbol, words or (heap.state,), [LUA_STACK])


def called(*code: int, **more: object) -> str:
    """Name a function that the last of these instructions calls."""
    heap = LuaHeap()
    heap.call(heap.state, heap.proto(code, **more), len(code) - 1)  # type: ignore[arg-type]
    heap.call(heap.state, heap.proto([op(RETURN)], defined=3))
    return read(heap)[0][0].function


def test_read_frames_of_a_script() -> None:
    heap = LuaHeap()
    lines = bytes([1, 0, 2, 0xFF])  # 1, 1, 3, 2
    main = heap.proto([op(GETTABUP, 0, 0, 0), op(CALL, 0)], lines=lines, constants=["work"])
    heap.call(heap.state, main, 1)
    work = heap.proto([op(RETURN)] * 4, lines=lines, defined=10, source="=(load)")
    heap.call(heap.state, work, 3)
    heap.call(heap.state, None)
    expected = [ScriptFrame("work", "(load)", 12), ScriptFrame("(main)", "/srv/job.lua", 1)]
    assert read(heap) == (expected, False)
    assert read(heap, 8, 1 << 63, heap.shared, heap.state, heap.state) == (expected, False)


def test_read_frames_of_a_coroutine_come_before_its_resumers() -> None:
    heap = LuaHeap()
    inner = heap.thread(LUA_STACK[0] + 0x400)
    outer, coroutine = (heap.proto([op(RETURN)], defined=n, source=f"@{n}.lua") for n in (1, 2))
    heap.call(heap.state, outer)
    heap.call(heap.state, None)
    heap.call(inner, coroutine)
    assert [f.file for f in read(heap, heap.state, inner)[0]] == ["2.lua", "1.lua"]
    heap.words(inner, {10: 1}, 1)  # it has yielded
    assert [f.file for f in read(heap, heap.state, inner)[0]] == ["1.lua"]
    heap.words(inner, {10: 0}, 1)
    heap.words(inner, {88: LUA_STACK[1]})  # it began on another stack
    assert [f.file for f in read(heap, heap.state, inner)[0]] == ["1.lua"]


@pytest.mark.parametrize("version", ["5.3.6", "5.4.9", "5.5.0"])
def test_read_frames_of_an_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(UnreadableError, match=version):
        read(LuaHeap(version=version))


def test_name_is_what_the_calling_instruction_says() -> None:
    assert called(op(GETTABUP, 1, 0, 1), op(CALL, 1), constants=["x", "run"]) == "run"
    assert called(op(GETFIELD, 1, 0, 0), op(TAILCALL, 1), constants=["run"]) == "run"
    assert called(op(SELF, 1, 0, 0, k=1), op(CALL, 1), constants=["step"]) == "step"
    assert called(op(GETUPVAL, 1, 1), op(CALL, 1), upvalues=["a", "each"]) == "each"
    names = [("a", 0, 9), ("gone", 0, 1), ("f", 0, 9)]
    assert called(op(RETURN), op(CALL, 1), names=names) == "f"
    assert called(op(MOVE, 2, 1), op(CALL, 2), names=[("a", 0, 9), ("f", 0, 9)]) == "f"
    assert called(op(GETTABLE, 1, 0, 2), op(CALL, 1)) == "(anonymous)"
    assert called(op(TFORCALL, 0)) == "(for iterator)"
    assert called(op(ADD, 0, 1, 2)) == "(metamethod)"


def test_name_is_none_where_more_than_one_instruction_may_have_set_the_register() -> None:
    first, second = op(GETTABUP, 1, 0, 0), op(GETTABUP, 1, 0, 1)
    names = ["one", "two"]
    either = (first, op(TEST, 0), jump(1), second, op(CALL, 1))
    assert called(*either, constants=names) == "(anonymous)"
    assert called(first, op(TEST, 0), jump(0), second, op(CALL, 1), constants=names) == "two"
    assert called(first, op(CALL, 0), op(CALL, 1), constants=names) == "(anonymous)"


def test_name_is_none_after_a_tail_call_or_from_c() -> None:
    heap = LuaHeap()
    code = [op(GETTABUP, 1, 0, 0), op(CALL, 1)]
    heap.call(heap.state, heap.proto(code, constants=["run"]), 1)
    heap.call(heap.state, heap.proto([op(RETURN)], defined=1), status=1 << 5)
    assert read(heap)[0][0].function == "(anonymous)"
    heap.call(heap.state, None)
    heap.call(heap.state, heap.proto([op(RETURN)], defined=1))
    assert read(heap)[0][0].function == "(anonymous)"
    heap.call(heap.state, heap.proto([op(RETURN)], defined=1), status=1 << 7)
    assert read(heap)[0][0].function == "__gc"


def test_line_begins_at_the_last_absolute_one() -> None:
    heap = LuaHeap()
    lines = bytes([1, 0x80, 2, 1])
    heap.call(heap.state, heap.proto([op(RETURN)] * 4, lines=lines, absolute={1: 500}), 3)
    assert read(heap)[0][0].line == 503
    heap.call(heap.state, heap.proto([op(RETURN)] * 4, lines=lines[:1], defined=7), 3)
    assert read(heap)[0][0].line is None  # stripped
    heap.call(heap.state, heap.proto([op(RETURN)] * 4, lines=lines, absolute={2: 500}), 3)
    with pytest.raises(UnreadableError, match="line is missing"):
        read(heap)


def test_read_frames_of_a_deep_stack_is_cut() -> None:
    heap = LuaHeap()
    proto = heap.proto([op(RETURN)], defined=1)
    for _ in range(FRAMES_MAX + 5):
        heap.call(heap.state, proto)
    frames, cut = read(heap)
    assert (len(frames), cut) == (FRAMES_MAX, True)


def test_damaged_memory_is_refused() -> None:
    heap = LuaHeap()
    proto = heap.proto([op(RETURN)], defined=1)
    at = heap.call(heap.state, proto, 1)
    with pytest.raises(UnreadableError, match="outside of its function's code"):
        read(heap)
    heap.words(at, {16: at})
    heap.words(at, {62: 2}, 2)
    with pytest.raises(UnreadableError, match="without an end"):
        read(heap)
    heap.words(at, {0: heap.shared, 16: 0})
    heap.words(at, {62: 0}, 2)
    with pytest.raises(UnreadableError, match="no function of Lua"):
        read(heap)
