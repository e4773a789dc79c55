import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.cli import output
from crashd.cli.output import SPARSE_BLOCK, terminable, write_file, write_sparse
from crashd.errors import CrashdError, UsageError

PIECES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 3 * SPARSE_BLOCK).map(bytes),
    st.integers(SPARSE_BLOCK - 2, SPARSE_BLOCK + 2).map(lambda size: bytes(size) + b"x"),
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=8), st.integers(1, 3 * SPARSE_BLOCK))
def test_write_sparse_gives_back_every_byte(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], step: int
) -> None:
    data = b"".join(pieces)
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    path = tmp_path_factory.mktemp("sparse") / "core"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        assert write_sparse(fd, chunks) == len(data)
    finally:
        os.close(fd)
    assert path.read_bytes() == data


def test_write_sparse_leaves_holes(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "core", os.O_RDWR | os.O_CREAT)
    try:
        write_sparse(fd, [b"\x7fELF", *[bytes(1 << 20)] * 64, b"end"])
        found = os.fstat(fd)
    finally:
        os.close(fd)
    assert found.st_size == 4 + (64 << 20) + 3
    assert found.st_blocks * 512 < 1 << 20


def test_write_file_is_private(tmp_path: Path) -> None:
    target = tmp_path / "core"
    previous = os.umask(0)
    try:
        assert write_file(target, [b"core"], force=False) == 4
    finally:
        os.umask(previous)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_write_file_existing_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "core"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        write_file(target, [b"core"], force=False)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_write_file_does_not_follow_a_link(tmp_path: Path, force: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "core"
    link.symlink_to(victim)
    if force:
        write_file(link, [b"core"], force=True)
        assert not link.is_symlink()
    else:
        with pytest.raises(UsageError):
            write_file(link, [b"core"], force=False)
    assert victim.read_text() == "mine"


def test_write_file_force_replaces_at_once(tmp_path: Path) -> None:
    target = tmp_path / "core"
    target.write_text("old")
    seen: list[str] = []

    def chunks() -> Iterator[bytes]:
        yield b"new"
        seen.append(target.read_text())

    write_file(target, chunks(), force=True)
    assert seen == ["old"]
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["core"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_write_file_force_replaces_regular_files_only(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    target = tmp_path / "core"
    make(target)
    with pytest.raises(UsageError, match="not a regular file"):
        write_file(target, [b"core"], force=True)


@pytest.mark.parametrize("force", [False, True])
def test_write_file_full_disk_leaves_nothing(
    tmp_path: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: memoryview, position: int) -> None:
        del fd, data, position
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "_write_at", full)
    with pytest.raises(CrashdError, match="No space left on device") as caught:
        write_file(tmp_path / "core", [b"core"], force=force)
    assert caught.value.exit_code == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, CrashdError, SystemExit])
def test_write_file_interrupted_leaves_nothing(
    tmp_path: Path, force: bool, error: type[BaseException]
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"begin"
        raise error("stop")

    with pytest.raises(error):
        write_file(tmp_path / "core", chunks(), force=force)
    assert os.listdir(tmp_path) == []


def test_terminable_turns_sigterm_into_an_unwound_stack() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, terminable():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_terminable_leaves_an_ignored_hangup_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
