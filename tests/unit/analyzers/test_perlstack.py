"""Perl's stack out of memory that is built structure by structure."""

import pytest

from crashd.analyzers.perlstack import read_frames
from crashd.analyzers.script import FRAMES_MAX, ScriptFrame, UnreadableError
from tests.builders.scripts import PerlHeap, perl_heap


def read(heap: PerlHeap) -> tuple[list[ScriptFrame], bool]:
    return read_frames(heap.memory, heap.symbol)


def test_read_frames_through_several_stacks() -> None:
    frames, cut = read(perl_heap())
    assert frames == [
        ScriptFrame("Job::by_name", "lib/Job.pm", 33),
        ScriptFrame("main::work", "/srv/a.pl", 4),
        ScriptFrame("(main)", "/srv/a.pl", 15),
    ]
    assert not cut


@pytest.mark.parametrize("minor", [36, 38, 40, 42])
def test_read_frames_of_each_version(minor: int) -> None:
    heap = PerlHeap(version=(5, minor))
    heap.at("/srv/a.pl", 3)
    assert read(heap) == ([ScriptFrame("(main)", "/srv/a.pl", 3)], False)


def test_read_frames_of_an_evaluated_string_is_a_frame() -> None:
    heap = PerlHeap()
    heap.at("/srv/a.pl", 3)
    heap.push(11)
    heap.at("(eval 1)", 1)
    assert read(heap)[0] == [
        ScriptFrame("(eval)", "(eval 1)", 1),
        ScriptFrame("(main)", "/srv/a.pl", 3),
    ]


def test_read_frames_before_and_after_the_program_is_empty() -> None:
    heap = PerlHeap()
    assert read(heap) == ([], False)
    heap.words(heap.symbols[b"PL_curinterp"], {0: 0})
    assert read(heap) == ([], False)


@pytest.mark.parametrize(
    ("version", "size"), [((5, 36), 3760), ((5, 38), 3768), ((7, 0), 3768), ((5, 40), 4000)]
)
def test_read_frames_of_an_unknown_build_is_refused(version: tuple[int, int], size: int) -> None:
    heap = PerlHeap(version=version, size=size)
    heap.at("/srv/a.pl", 1)
    with pytest.raises(UnreadableError, match="not known"):
        read(heap)


def test_read_frames_of_stacks_in_a_cycle_ends() -> None:
    heap = perl_heap()
    heap.words(heap.stack, {16: heap.stack})
    frames, cut = read(heap)
    assert len(frames) == FRAMES_MAX
    assert cut


def test_read_frames_of_empty_stacks_in_a_cycle_is_refused() -> None:
    heap = PerlHeap()
    heap.at("/srv/a.pl", 1)
    heap.words(heap.stack, {16: heap.stack})
    with pytest.raises(UnreadableError, match="end"):
        read(heap)


@pytest.mark.parametrize("index", [8, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFE])
def test_read_frames_with_an_absurd_index_is_refused(index: int) -> None:
    heap = perl_heap()
    heap.words(heap.stack, {32: index}, 4)
    with pytest.raises(UnreadableError, match="contexts"):
        read(heap)


@pytest.mark.parametrize("offset", [208, 224])
@pytest.mark.parametrize("value", [1, 8, 0xDEAD_BEE0, (1 << 64) - 8])
def test_read_frames_with_wild_pointers_is_refused(offset: int, value: int) -> None:
    heap = perl_heap()
    heap.words(heap.interpreter, {offset: value})
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize("offset", [16, 72])
@pytest.mark.parametrize("value", [0, 2, 0xDEAD_BEE0, (1 << 64) - 8])
def test_read_frames_with_a_damaged_context_is_refused(offset: int, value: int) -> None:
    heap = PerlHeap()
    heap.at("/srv/a.pl", 1)
    heap.words(heap.push(9, heap.sub("main", "f")), {offset: value})
    with pytest.raises(UnreadableError):
        read(heap)


@pytest.mark.parametrize("kind", [0, 5, 9, 13])
def test_read_frames_of_a_sub_that_is_none_is_refused(kind: int) -> None:
    heap = PerlHeap()
    heap.at("/srv/a.pl", 1)
    heap.push(9, heap.sv(kind, heap.room(112)))
    with pytest.raises(UnreadableError):
        read(heap)


def test_read_frames_of_a_package_without_a_name_is_refused() -> None:
    heap = PerlHeap()
    heap.at("/srv/a.pl", 1)
    sub = heap.sub("main", "f", named=True)
    stash = heap.memory.pointer(heap.memory.pointer(sub) + 32)
    heap.words(stash, {12: 12}, 4)
    heap.push(9, sub)
    with pytest.raises(UnreadableError, match="no name"):
        read(heap)
