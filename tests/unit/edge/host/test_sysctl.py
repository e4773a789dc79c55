import errno
import fcntl
import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crashd.domain.crash.corepattern import build_pattern, build_socket_pattern
from crashd.edge.host import sysctl
from crashd.edge.host.sysctl import (
    PATTERN,
    PIPE_LIMIT,
    SUID_DUMPABLE,
    Registration,
    owned,
    read,
    register,
    restore,
    write,
)
from crashd.errors import (
    CrashdError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)
from crashd.store.paths import Paths

HANDLER = "/usr/libexec/crashd-core"
OURS = build_pattern(HANDLER)
WANTED = Registration(OURS, 64, HANDLER)
THEIRS = "|/usr/share/apport/apport -p%p -s%s"
NAMES = (PATTERN, PIPE_LIMIT, SUID_DUMPABLE)


def file_of(proc: Path, name: str) -> Path:
    return proc / "sys" / name.replace(".", "/")


def values(proc: Path) -> tuple[str, ...]:
    return tuple(file_of(proc, name).read_text().removesuffix("\n") for name in NAMES)


def set_values(proc: Path, *new: str) -> None:
    for name, value in zip(NAMES, new, strict=True):
        file_of(proc, name).write_text(value + "\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with the kernel's defaults."""
    tree = tmp_path / "proc"
    for directory in ("kernel", "fs"):
        (tree / "sys" / directory).mkdir(parents=True)
    set_values(tree, "core", "0", "0")
    return tree


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    return tmp_path / "state" / "previous-core-pattern"


@contextmanager
def file_size_limit(size: int = 55) -> Iterator[None]:
    """Let files grow no further than `size`, which a pattern does.

    The kernel cuts the write, as core_pattern itself cuts what is too long.
    Only around the call: the test runner writes to files of its own between the steps of a test.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def sealed(proc: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the three, `0`, that can be read but not written, by root either."""
    name: str = request.param
    fd = os.memfd_create("sysctl", os.MFD_ALLOW_SEALING)
    os.write(fd, b"0\n")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    file_of(proc, name).unlink()
    file_of(proc, name).symlink_to(f"/dev/fd/{fd}")
    yield name
    os.close(fd)


# -- read and write


def test_read_value_is_without_its_newline(proc: Path) -> None:
    assert read(PATTERN, proc) == "core"
    assert read(PIPE_LIMIT, proc) == "0"


def test_read_empty_pattern_is_empty(proc: Path) -> None:
    file_of(proc, PATTERN).write_text("\n")
    assert read(PATTERN, proc) == ""


def test_read_other_sysctl_is_a_mistake(proc: Path) -> None:
    with pytest.raises(ValueError, match=r"kernel\.panic"):
        read("kernel.panic", proc)


def test_read_missing_is_unsupported(proc: Path) -> None:
    file_of(proc, PATTERN).unlink()
    with pytest.raises(UnsupportedError, match=r"kernel\.core_pattern: No such file") as error:
        read(PATTERN, proc)
    assert "CONFIG_COREDUMP" in (error.value.hint or "")


def test_read_directory_is_unavailable(proc: Path) -> None:
    file_of(proc, PATTERN).unlink()
    file_of(proc, PATTERN).mkdir()
    with pytest.raises(UnavailableError, match=r"kernel\.core_pattern: Is a directory"):
        read(PATTERN, proc)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (PIPE_LIMIT, ""),
        (PIPE_LIMIT, "-1\n"),
        (PIPE_LIMIT, "1\n2\n"),
        (PIPE_LIMIT, "2147483648\n"),
        (SUID_DUMPABLE, "3\n"),
        (SUID_DUMPABLE, "٢\n"),
        (PATTERN, "a\0b\n"),
        (PATTERN, "a\nb\n"),
        (PATTERN, 128 * "x"),
    ],
)
def test_read_what_is_no_value_is_unavailable(proc: Path, name: str, content: str) -> None:
    file_of(proc, name).write_text(content)
    with pytest.raises(UnavailableError, match="not a valid value"):
        read(name, proc)


def test_read_endless_file_ends(proc: Path) -> None:
    file_of(proc, PATTERN).unlink()
    file_of(proc, PATTERN).symlink_to("/dev/zero")
    with pytest.raises(UnavailableError, match="not a valid value"):
        read(PATTERN, proc)


@pytest.mark.parametrize("value", ["", "core", 127 * "x", "/c/\udcff%p"])
def test_write_value_is_there_to_the_byte(proc: Path, value: str) -> None:
    file_of(proc, PATTERN).write_text("longer than the new one\n")
    write(PATTERN, value, proc)
    assert file_of(proc, PATTERN).read_bytes() == os.fsencode(value) + b"\n"
    assert read(PATTERN, proc) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (PATTERN, "a\nb"),
        (PATTERN, "a\0"),
        (PATTERN, 128 * "x"),
        (PATTERN, 64 * "é"),
        (PIPE_LIMIT, "-1"),
        (PIPE_LIMIT, "0x10"),
        (SUID_DUMPABLE, "3"),
    ],
)
def test_write_what_is_no_value_is_a_mistake(proc: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match="is not a value"):
        write(name, value, proc)
    assert values(proc) == ("core", "0", "0")


@pytest.mark.parametrize("sealed", [PIPE_LIMIT], indirect=True)
def test_write_not_permitted_names_sysctl_and_values(proc: Path, sealed: str) -> None:
    with pytest.raises(PermissionDeniedError) as error:
        write(sealed, "64", proc)
    assert "kernel.core_pipe_limit from '0' to '64'" in str(error.value)
    assert error.value.hint is not None


def test_write_cut_is_unsupported_and_the_old_value_back(proc: Path) -> None:
    with pytest.raises(UnsupportedError) as error, file_size_limit():
        write(PATTERN, OURS, proc)
    assert repr(OURS) in str(error.value)
    assert repr(OURS[:55]) in str(error.value)
    assert "'core' was restored" in str(error.value)
    assert values(proc) == ("core", "0", "0")


def test_write_not_kept_is_unsupported(proc: Path) -> None:
    file_of(proc, PATTERN).unlink()
    file_of(proc, PATTERN).symlink_to("/dev/null")
    with pytest.raises(
        UnsupportedError, match="was set to 'x' and then read as ''; '' was restored"
    ):
        write(PATTERN, "x", proc)


def test_write_unreadable_afterwards_is_unsupported_and_the_old_value_back(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 6.16 and 6.17 do with a pattern that they should not have taken."""

    def show(name: str, tree: Path) -> str:
        if read(name, tree) == "@relative":
            raise UnavailableError("cannot read kernel.core_pattern: Invalid argument")
        return read(name, tree)

    monkeypatch.setattr(sysctl, "read", show)
    with pytest.raises(UnsupportedError, match=r"an error .*Invalid argument.*'core' was restored"):
        write(PATTERN, "@relative", proc)
    assert values(proc) == ("core", "0", "0")


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.EROFS, UnsupportedError, "container"),
        (errno.EINVAL, UnsupportedError, "refuses"),
        (errno.EACCES, PermissionDeniedError, "root"),
        (errno.EPERM, PermissionDeniedError, "root"),
        (errno.EIO, UnavailableError, None),
    ],
)
def test_write_error_of_the_kernel_is_told_apart(
    proc: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[CrashdError],
    hint: str | None,
) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(kind, match=r"kernel\.core_pattern from 'core' to 'x'") as error:
        write(PATTERN, "x", proc)
    assert type(error.value) is kind
    assert hint is None or hint in (error.value.hint or "")


def test_owned_tells_whose_the_pattern_is(proc: Path) -> None:
    assert not owned(HANDLER, proc)
    write(PATTERN, OURS, proc)
    assert owned(HANDLER, proc)
    assert not owned("/opt/libexec/crashd-core", proc)


def test_read_of_this_host_is_what_the_kernel_shows() -> None:
    for name in NAMES:
        assert read(name) == file_of(Path("/proc"), name).read_text().removesuffix("\n")


# -- register


@pytest.mark.parametrize("before", [("core", "0", "0"), (THEIRS, "10", "2"), ("", "4", "1")])
def test_register_sets_all_and_saves_what_was_there(
    proc: Path, previous: Path, before: tuple[str, str, str]
) -> None:
    set_values(proc, *before)
    assert register(WANTED, previous, proc) is True
    assert values(proc) == (OURS, "64", "2")
    assert previous.read_text() == (
        f"{before[0]}\nkernel.core_pipe_limit={before[1]}\nfs.suid_dumpable={before[2]}\n"
        "set kernel.core_pipe_limit=64\n"
    )
    assert previous.stat().st_mode & 0o777 == 0o600
    assert os.listdir(previous.parent) == [previous.name]


def test_register_again_changes_nothing(proc: Path, previous: Path) -> None:
    register(WANTED, previous, proc)
    saved = previous.read_bytes()
    assert register(WANTED, previous, proc) is False
    assert previous.read_bytes() == saved


def test_register_over_an_older_own_pattern_keeps_the_first_file(
    proc: Path, previous: Path
) -> None:
    register(Registration(build_pattern(HANDLER, extended=False), 16, HANDLER), previous, proc)
    saved = previous.read_bytes()
    assert register(WANTED, previous, proc) is True
    assert values(proc) == (OURS, "64", "2")
    assert previous.read_bytes() == saved.replace(b"limit=16\n", b"limit=64\n")


def test_register_own_pattern_of_sysctl_d_saves_nothing(proc: Path, previous: Path) -> None:
    set_values(proc, OURS, "0", "0")
    assert register(WANTED, previous, proc) is True
    assert values(proc) == (OURS, "64", "2")
    assert not previous.exists()


def test_register_after_another_tool_saves_the_other_s(proc: Path, previous: Path) -> None:
    register(WANTED, previous, proc)
    set_values(proc, THEIRS, "10", "2")
    register(WANTED, previous, proc)
    assert previous.read_text().startswith(THEIRS + "\n")


def test_register_where_nothing_can_be_saved_changes_nothing(proc: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="cannot save the present settings"):
        register(WANTED, tmp_path / "file" / "previous", proc)
    assert values(proc) == ("core", "0", "0")


def test_register_save_failing_leaves_no_staged_file(proc: Path, previous: Path) -> None:
    previous.mkdir(parents=True)  # a rename onto it fails
    with pytest.raises(UnavailableError, match="cannot save"):
        register(WANTED, previous, proc)
    assert os.listdir(previous.parent) == [previous.name]
    assert values(proc) == ("core", "0", "0")


@pytest.mark.parametrize("sealed", [PIPE_LIMIT, SUID_DUMPABLE], indirect=True)
def test_register_failing_half_way_rolls_back(proc: Path, previous: Path, sealed: str) -> None:
    with pytest.raises(PermissionDeniedError, match=sealed):
        register(WANTED, previous, proc)
    assert values(proc) == ("core", "0", "0")
    assert not previous.exists()


def test_register_failing_at_the_pattern_rolls_back(proc: Path, previous: Path) -> None:
    handler = "/srv/a-root-of-its-own" + HANDLER
    wanted = Registration(build_pattern(handler), 64, handler)
    # room for what is saved of the defaults, 79 bytes
    with pytest.raises(UnsupportedError, match=r"kernel\.core_pattern"), file_size_limit(80):
        register(wanted, previous, proc)
    assert values(proc) == ("core", "0", "0")
    assert not previous.exists()


@pytest.mark.parametrize("sealed", [SUID_DUMPABLE], indirect=True)
def test_register_rollback_failing_too_is_told_and_the_file_kept(
    proc: Path, previous: Path, sealed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def refuse(name: str, value: str, tree: Path) -> None:
        if value == "core":
            refused.append(name)
            raise UnavailableError("cannot set it back")
        write(name, value, tree)

    monkeypatch.setattr(sysctl, "write", refuse)
    with pytest.raises(UnavailableError, match=r"fs\.suid_dumpable.*then cannot set it back"):
        register(WANTED, previous, proc)
    assert refused == [PATTERN]
    assert values(proc) == (OURS, "0", "0")
    assert previous.exists()


# -- restore


@pytest.mark.parametrize(
    "before", [("core", "0", "0"), (THEIRS, "10", "2"), ("", "4", "1"), ("/c/\udcff", "0", "0")]
)
def test_restore_puts_all_three_back(
    proc: Path, previous: Path, before: tuple[str, str, str]
) -> None:
    for name, value in zip(NAMES, before, strict=True):
        write(name, value, proc)
    register(WANTED, previous, proc)
    assert repr(before[0]) in restore(HANDLER, previous, proc)
    assert tuple(read(name, proc) for name in NAMES) == before
    assert not previous.exists()


def test_restore_order_is_suid_dumpable_first_and_pattern_last(
    proc: Path, previous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def note(name: str, value: str, tree: Path) -> None:
        written.append(name)
        write(name, value, tree)

    monkeypatch.setattr(sysctl, "write", note)
    register(WANTED, previous, proc)
    assert written == [PATTERN, PIPE_LIMIT, SUID_DUMPABLE]
    written.clear()
    restore(HANDLER, previous, proc)
    assert written == [SUID_DUMPABLE, PIPE_LIMIT, PATTERN]


def test_restore_other_tool_s_pattern_is_left_alone(proc: Path, previous: Path) -> None:
    register(WANTED, previous, proc)
    set_values(proc, THEIRS, "64", "2")
    assert "not crashd's" in restore(HANDLER, previous, proc)
    assert values(proc) == (THEIRS, "0", "0")
    assert not previous.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"core",
        b"core\n",
        b"core\nkernel.core_pipe_limit=1\n",
        b"core\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1",
        b"core\nfs.suid_dumpable=1\nkernel.core_pipe_limit=1\n",
        b"core\nkernel.core_pipe_limit=1\nfs.suid_dumpable=9\n",
        b"core\nkernel.core_pipe_limit=-1\nfs.suid_dumpable=1\n",
        b"core\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\nmore\n",
        b"core\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\nset kernel.core_pipe_limit=x\n",
        b"x\0y\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\n",
        128 * b"x" + b"\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\n",
        100_000 * b"x",
        OURS.encode() + b"\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\n",
        None,
    ],
)
def test_restore_file_missing_or_garbage_sets_the_defaults(
    proc: Path, previous: Path, content: bytes | None
) -> None:
    set_values(proc, OURS, "64", "2")
    if content is not None:
        previous.parent.mkdir()
        previous.write_bytes(content)
    assert "default" in restore(HANDLER, previous, proc)
    assert values(proc) == ("core", "0", "0")
    assert not previous.exists()


def test_restore_fifo_or_link_in_place_of_the_file_does_not_block(
    proc: Path, previous: Path
) -> None:
    previous.parent.mkdir()
    set_values(proc, OURS, "64", "2")
    os.mkfifo(previous)
    assert "default" in restore(HANDLER, previous, proc)
    set_values(proc, OURS, "64", "2")
    elsewhere = previous.with_name("elsewhere")
    elsewhere.write_text("|/evil\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\n")
    previous.symlink_to(elsewhere)
    assert "default" in restore(HANDLER, previous, proc)
    assert values(proc) == ("core", "0", "0")
    assert elsewhere.exists()


@pytest.mark.parametrize("sealed", [SUID_DUMPABLE], indirect=True)
def test_restore_one_failing_does_not_keep_the_others(
    proc: Path, previous: Path, sealed: str
) -> None:
    for name, value in ((PATTERN, OURS), (PIPE_LIMIT, "64")):
        write(name, value, proc)
    previous.parent.mkdir()
    previous.write_text("core\nkernel.core_pipe_limit=4\nfs.suid_dumpable=1\n")
    with pytest.raises(PermissionDeniedError, match=sealed):
        restore(HANDLER, previous, proc)
    assert values(proc) == ("core", "4", "0")
    assert previous.exists()


# -- another changed the pattern meanwhile


@pytest.mark.parametrize("pattern", [THEIRS, "core", ""])
def test_restore_under_anothers_pattern_puts_the_companions_back(
    proc: Path, previous: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_values(proc, "core.%p", "3", "1")
    register(WANTED, previous, proc)
    set_values(proc, pattern, "64", "2")
    written: list[str] = []

    def note(name: str, value: str, tree: Path) -> None:
        written.append(name)
        write(name, value, tree)

    monkeypatch.setattr(sysctl, "write", note)
    outcome = restore(HANDLER, previous, proc)
    assert "fs.suid_dumpable is '1' again; kernel.core_pipe_limit is '3' again" in outcome
    assert values(proc) == (pattern, "3", "1")
    assert written == [SUID_DUMPABLE, PIPE_LIMIT]
    assert not previous.exists()


@pytest.mark.parametrize(
    ("present", "after"), [(("8", "2"), ("8", "1")), (("64", "0"), ("3", "0"))]
)
def test_restore_leaves_companions_that_another_changed(
    proc: Path, previous: Path, present: tuple[str, str], after: tuple[str, str]
) -> None:
    set_values(proc, "core.%p", "3", "1")
    register(WANTED, previous, proc)
    set_values(proc, THEIRS, *present)
    restore(HANDLER, previous, proc)
    assert values(proc) == (THEIRS, *after)


def test_register_again_after_anothers_pattern_still_knows_the_first_companions(
    proc: Path, previous: Path
) -> None:
    set_values(proc, "core.%p", "3", "1")
    register(WANTED, previous, proc)
    set_values(proc, THEIRS, "64", "2")
    register(WANTED, previous, proc)
    restore(HANDLER, previous, proc)
    assert values(proc) == (THEIRS, "3", "1")


def test_register_with_another_limit_is_given_back_under_anothers_pattern(
    proc: Path, previous: Path
) -> None:
    register(WANTED, previous, proc)
    register(Registration(OURS, 16, HANDLER), previous, proc)
    set_values(proc, THEIRS, "16", "2")
    restore(HANDLER, previous, proc)
    assert values(proc) == (THEIRS, "0", "0")


@pytest.mark.parametrize("sealed", [SUID_DUMPABLE], indirect=True)
def test_register_failing_again_keeps_what_was_saved_first(
    proc: Path, previous: Path, sealed: str
) -> None:
    previous.parent.mkdir()
    saved = "core\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\nset kernel.core_pipe_limit=9\n"
    previous.write_text(saved)
    with pytest.raises(PermissionDeniedError, match=sealed):
        register(WANTED, previous, proc)
    assert previous.read_text() == saved


# -- several roots


class Root:
    """A crashd with a root of its own, of which only the registration is there."""

    def __init__(self, path: Path, proc: Path, *, socket: bool = False) -> None:
        self.paths, self._proc = Paths(path), proc
        self.handler = str(self.paths.handler)
        self.pattern = build_pattern(self.handler)
        place = self.paths.handler
        if socket:
            place = self.paths.kernel_socket
            self.pattern = build_socket_pattern(str(place))
        place.parent.mkdir(parents=True)
        place.touch()
        self.place = place

    def start(self, limit: int = 64) -> None:
        wanted = Registration(self.pattern, limit, self.handler)
        register(wanted, self.paths.previous_core_pattern, self._proc)

    def stop(self) -> str:
        return restore(self.handler, self.paths.previous_core_pattern, self._proc)


@pytest.fixture(params=[False, True], ids=["pipe", "socket"])
def roots(short_tmp: Path, proc: Path, request: pytest.FixtureRequest) -> list[Root]:
    set_values(proc, *BEFORE)
    return [Root(short_tmp / name, proc, socket=request.param) for name in "abc"]


BEFORE = ("core.%p", "3", "1")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_roots_stopped_in_any_order_leave_what_was_before(
    proc: Path, roots: list[Root], order: tuple[int, ...]
) -> None:
    for number, root in enumerate(roots):
        root.start(64 + number)
    standing = [0, 1, 2]
    for number in order:
        roots[number].stop()
        standing.remove(number)
        if standing:
            assert values(proc)[0] == roots[standing[-1]].pattern
            assert values(proc)[2] == "2"
    assert values(proc) == BEFORE
    assert not any(root.paths.previous_core_pattern.exists() for root in roots)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_roots_registered_in_turns_forget_nothing(
    proc: Path, roots: list[Root], order: tuple[int, ...]
) -> None:
    for number in (0, 1, 0, 1, 1, 0):
        roots[number].start()
    for number in order:
        roots[number].stop()
    assert values(proc) == BEFORE


def test_root_that_is_gone_is_not_given_back(proc: Path, roots: list[Root]) -> None:
    for root in roots:
        root.start()
    for root in roots[:2]:
        root.place.unlink()
    roots[2].stop()
    assert values(proc) == BEFORE


def test_root_that_is_gone_with_its_file_gives_way_to_the_default(
    proc: Path, roots: list[Root]
) -> None:
    for root in roots[:2]:
        root.start()
    roots[0].place.unlink()
    roots[0].paths.previous_core_pattern.unlink()
    assert "default" in roots[1].stop()
    assert values(proc) == ("core", "0", "0")


def test_root_that_still_runs_is_given_back(proc: Path, roots: list[Root]) -> None:
    for root in roots[:2]:
        root.start()
    roots[1].stop()
    assert values(proc) == (roots[0].pattern, "64", "2")


def test_roots_with_another_s_pattern_between_give_the_companions_back(
    proc: Path, roots: list[Root]
) -> None:
    roots[0].start()
    set_values(proc, THEIRS, "64", "2")
    roots[1].start()
    roots[0].stop()
    assert values(proc) == (roots[1].pattern, "64", "2")
    roots[1].stop()
    assert values(proc) == (THEIRS, *BEFORE[1:])


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_root_that_others_may_write_to_is_neither_read_nor_written(
    proc: Path, roots: list[Root], mode: int
) -> None:
    """What such a file says would be run by the kernel as root."""
    for root in roots[:2]:
        root.start()
    theirs = roots[1].paths
    before = theirs.previous_core_pattern.read_bytes()
    theirs.root.chmod(mode)
    assert str(roots[0].paths.previous_core_pattern) in roots[0].stop()
    assert theirs.previous_core_pattern.read_bytes() == before
    assert roots[0].paths.previous_core_pattern.exists()
    roots[1].place.unlink()
    roots[2].start()
    roots[1].paths.previous_core_pattern.write_text(
        "|/evil\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\n"
    )
    assert "default" in roots[2].stop()
    assert values(proc) == ("core", "0", "0")


def test_roots_that_name_each_other_come_to_an_end(proc: Path, roots: list[Root]) -> None:
    for root in roots[:2]:
        root.start()
    for root, other in ((roots[0], roots[1]), (roots[1], roots[0])):
        root.paths.previous_core_pattern.write_text(
            f"{other.pattern}\nkernel.core_pipe_limit=1\nfs.suid_dumpable=1\n"
        )
        other.place.unlink()
    roots[2].start()
    assert "default" in roots[2].stop()


def test_root_that_stops_at_the_same_moment_does_not_leave_ours(
    proc: Path, roots: list[Root], monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in roots[:2]:
        root.start()
    hand_over = sysctl._hand_over

    def stop_first(*given: Any) -> bool:
        monkeypatch.undo()
        roots[1].stop()
        return hand_over(*given)

    monkeypatch.setattr(sysctl, "_hand_over", stop_first)
    roots[0].stop()
    assert values(proc) == BEFORE
    assert not roots[0].paths.previous_core_pattern.exists()
