"""Ruby's stack out of memory that is built structure by structure."""

import pytest

from crashd.analyzers.rubystack import read_frames
from crashd.analyzers.script import FRAMES_MAX, ScriptFrame, UnreadableError
from tests.builders.scripts import RUBY_TID, RubyHeap, ruby_heap

FRAMES = [
    ScriptFrame("step", "/srv/a/longer/path/job.rb", 5),
    ScriptFrame("block in <main>", "/srv/a.rb", 10),
    ScriptFrame("<main>", "/srv/a.rb", 9),
]


def read(heap: RubyHeap, *words: int) -> tuple[list[ScriptFrame], bool]:
    return read_frames(heap.memory, heap.symbol, RUBY_TID, [*words, heap.context])


@pytest.mark.parametrize("version", ["3.1.2", "3.3.8"])
def test_read_frames_of_scripts(version: str) -> None:
    heap = ruby_heap(version)
    assert read(heap, heap.thread, heap.end - 8, 8, 0, 1 << 63) == (FRAMES, False)


@pytest.mark.parametrize("version", ["3.2.1", "3.4.0", "2.7.8", "x", "3.1"])
def test_read_frames_of_an_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(UnreadableError):
        read(RubyHeap(version=version))


@pytest.mark.parametrize("version", ["3.1.2", "3.3.8"])
def test_read_frames_of_another_thread_is_empty(version: str) -> None:
    heap = ruby_heap(version)
    words = [heap.context]
    assert read_frames(heap.memory, heap.symbol, RUBY_TID + 1, words) == ([], False)
    heap.words(heap.thread, {40 if heap.old else 48: heap.thread})
    assert read(heap) == ([], False)


@pytest.mark.parametrize(
    ("position", "line"), [(0, 1), (53, 1), (60, 2), (129, 2), (130, 3), (600, 3), (700, 4)]
)
def test_read_frames_finds_the_line_of_each_instruction(position: int, line: int) -> None:
    heap = RubyHeap()
    heap.call(heap.code("f", "a.rb", {0: 1, 60: 2, 130: 3, 700: 4, 701: 5}, size=800), position)
    assert read(heap)[0] == [ScriptFrame("f", "a.rb", line)]


def test_read_frames_of_a_deep_stack_is_cut() -> None:
    heap = RubyHeap(version="3.3.8")
    code = heap.code("f", "a.rb", {0: 1})
    stack = heap.room(56 * 200)
    heap.words(heap.context, {0: stack - 8, 8: 7 * 200 + 1})
    heap.cfp = stack + 56 * 200
    environment = heap.room(8)
    for _ in range(200):
        heap.cfp -= 56
        body = heap.memory.pointer(code + 16)
        pc = heap.memory.pointer(body + 8) + 8
        heap.words(heap.cfp, {0: pc, 16: code, 32: environment})
    heap.words(heap.context, {16: heap.cfp})
    frames, cut = read(heap)
    assert len(frames) == FRAMES_MAX
    assert cut


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (0, 1 << 40), (8, 1 << 40), (16, 64)])
def test_read_frames_with_a_wild_stack_is_refused(offset: int, value: int) -> None:
    heap = ruby_heap()
    heap.words(heap.context, {offset: value})
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize("offset", [0, 16, 32])
@pytest.mark.parametrize("value", [2, 0x1000, 0xDEAD_BEE0, (1 << 64) - 8])
def test_read_frames_with_a_damaged_frame_is_refused(offset: int, value: int) -> None:
    heap = ruby_heap()
    heap.words(heap.cfp, {offset: value})
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize(("offset", "value"), [(64, 0), (80, 0x1000), (120, 8), (144, 8)])
def test_read_frames_with_damaged_instructions_is_refused(offset: int, value: int) -> None:
    heap = ruby_heap()
    body = heap.memory.pointer(heap.memory.pointer(heap.cfp + 16) + 16)
    heap.words(body, {offset: value})
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize("length", [0, 1 << 20, (1 << 64) - 1])
def test_read_frames_with_an_absurd_length_is_refused(length: int) -> None:
    heap = RubyHeap(version="3.3.8")
    code = heap.code("f", "a.rb", {0: 1})
    heap.call(code, 0)
    label = heap.memory.pointer(heap.memory.pointer(code + 16) + 80)
    heap.words(label, {16: length})
    with pytest.raises(UnreadableError):
        read(heap)
