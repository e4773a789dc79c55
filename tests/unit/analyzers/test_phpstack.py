"""PHP's stack out of memory that is built structure by structure."""

import pytest

from crashd.analyzers.phpstack import read_frames
from crashd.analyzers.script import FRAMES_MAX, Memory, ScriptFrame, UnreadableError
from tests.builders.scripts import PhpHeap, php_heap


def read(heap: PhpHeap) -> tuple[list[ScriptFrame], bool]:
    return read_frames(heap.memory, heap.symbol)


@pytest.mark.parametrize("version", ["8.2.36", "8.3.6", "8.4.27", "8.4.0RC1-dev"])
def test_read_frames_of_scripts(version: str) -> None:
    frames, cut = read(php_heap(version))
    assert frames == [
        ScriptFrame("Job::step", "/srv/job.php", 6),
        ScriptFrame("{main}", "/srv/a.php", 14),
    ]
    assert not cut


@pytest.mark.parametrize("version", ["8.1.2", "8.5.0", "7.4.33", "9.0.0", "8", "x", "8.2", ""])
def test_read_frames_of_an_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(UnreadableError):
        read(php_heap(version))


def test_read_frames_without_a_call_is_empty() -> None:
    assert read(PhpHeap()) == ([], False)


def test_read_frames_of_a_cycle_ends() -> None:
    heap = php_heap()
    heap.words(heap.last, {48: heap.last})
    frames, cut = read(heap)
    assert len(frames) == FRAMES_MAX
    assert cut


def test_read_frames_of_a_cycle_of_internal_functions_ends() -> None:
    heap = PhpHeap()
    heap.words(heap.call("strlen", "", 1, kind=1), {48: heap.last})
    assert read(heap) == ([], True)


@pytest.mark.parametrize("at", [0, 24, 48])
@pytest.mark.parametrize("value", [1, 7, 0xDEAD_BEE0, (1 << 64) - 8, 1 << 63])
def test_read_frames_with_a_wild_pointer_has_no_invented_frame(at: int, value: int) -> None:
    heap = php_heap()
    heap.words(heap.last, {at: value})
    if at == 0:  # where the instruction is: only the line is lost
        assert read(heap)[0][0] == ScriptFrame("Job::step", "/srv/job.php", None)
    else:
        with pytest.raises(UnreadableError):
            read(heap)


@pytest.mark.parametrize("length", [0, 1 << 20, (1 << 64) - 1])
def test_read_frames_with_an_absurd_length_is_refused(length: int) -> None:
    heap = php_heap()
    function = heap.memory.pointer(heap.last + 24)
    name = heap.memory.pointer(function + 8)
    heap.words(name, {16: length})
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize("name", [b"\x1b[31m", b"\xff\xfe", b"a\nb", b"a\0b"])
def test_read_frames_with_a_name_that_is_no_text_is_refused(name: bytes) -> None:
    heap = php_heap()
    at = heap.data.find(b"step")
    heap.data[at : at + 4] = name[:4].ljust(4, b"\0")
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize(("offset", "value"), [(32, 7), (32, 1 << 31), (12, 0), (16, 0), (16, 8)])
def test_read_frames_with_a_damaged_table_is_refused(offset: int, value: int) -> None:
    heap = php_heap()
    heap.words(heap.table, {offset: value}, 4)
    with pytest.raises(UnreadableError):
        read(heap)


def test_read_frames_that_take_too_long_is_refused() -> None:
    heap = php_heap()
    memory = Memory(heap.read, cpu_seconds=-1)
    with pytest.raises(UnreadableError, match="too long"):
        read_frames(memory, heap.symbol)
