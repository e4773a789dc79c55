import os
import stat
from pathlib import Path

import pytest

from crashd.errors import ConfigError
from crashd.store.trusted import distrust, find_untrusted, read_trusted

NOBODY = 65534


def _file(directory: Path, content: bytes = b"x") -> Path:
    path = directory / "file"
    path.write_bytes(content)
    path.chmod(0o644)
    return path


def test_read_trusted_file_is_read(tmp_path: Path) -> None:
    assert read_trusted(_file(tmp_path, b"12345"), 5) == b"12345"


def test_read_trusted_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(_file(tmp_path))
    assert read_trusted(link, 10) == b"x"


def test_read_trusted_larger_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file: is larger than 4 bytes"):
        read_trusted(_file(tmp_path, b"12345"), 4)


def test_read_trusted_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: cannot be read: No such file or directory"):
        read_trusted(tmp_path / "none", 10)


def test_read_trusted_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_trusted(tmp_path, 10)


@pytest.mark.timeout(10)
def test_read_trusted_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="fifo: is not a regular file"):
        read_trusted(tmp_path / "fifo", 10)


def test_read_trusted_refusals_leak_no_descriptor(tmp_path: Path) -> None:
    large = _file(tmp_path, b"12345")
    before = os.dup(0)
    os.close(before)
    for path in (tmp_path, large):
        with pytest.raises(ConfigError):
            read_trusted(path, 4)
    after = os.dup(0)
    os.close(after)
    assert after == before  # the lowest free number


def test_read_trusted_name_with_controls_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\\x0ab\\xff: cannot be read"):
        read_trusted(Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\nb\xff")), 10)


def test_read_trusted_as_root_file_of_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, -1)
    uid = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match=f"file: belongs to uid {uid} and not to root") as e:
        read_trusted(path, 10)
    assert e.value.hint is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="files of root can only be made by root")
def test_read_trusted_as_root_directory_of_another_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    os.chown(tmp_path, NOBODY, -1)
    with pytest.raises(ConfigError, match=f"^{tmp_path}: belongs to uid {NOBODY}"):
        read_trusted(path, 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="files of root can only be made by root")
def test_read_trusted_as_root_writable_file_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="file: can be written by others than root"):
        read_trusted(path, 10)


@pytest.mark.parametrize(
    ("owner", "mode", "euid", "trusted"),
    [
        (0, stat.S_IFREG | 0o644, 0, True),
        (0, stat.S_IFREG | 0o600, 0, True),
        (0, stat.S_IFREG | 0o664, 0, False),
        (0, stat.S_IFREG | 0o646, 0, False),
        (0, stat.S_IFREG | stat.S_ISVTX | 0o646, 0, False),
        (1000, stat.S_IFREG | 0o644, 0, False),
        (1000, stat.S_IFREG | 0o666, 1000, True),
        (0, stat.S_IFDIR | 0o755, 0, True),
        (0, stat.S_IFDIR | 0o775, 0, False),
        (0, stat.S_IFDIR | stat.S_ISVTX | 0o777, 0, True),
        (1000, stat.S_IFDIR | 0o755, 0, False),
    ],
)
def test_distrust_root_trusts_only_what_is_its_own(
    owner: int, mode: int, euid: int, trusted: bool
) -> None:
    assert (distrust(owner, mode, euid) is None) is trusted


def test_find_untrusted_always_judges_where_we_are_not_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)  # what is root's is trusted by all
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "x").touch(mode=0o600)
    shared.chmod(0o777)
    assert find_untrusted(shared / "x") is None
    found = find_untrusted(shared / "x", always=True)
    assert found is not None
    assert found.startswith(f"{shared} ")
    shared.chmod(0o755)
    assert find_untrusted(shared / "x", always=True) is None
