"""Sets the three sysctls of a crash collector, with read-back, and restores their old values.

Order matters: kernel.core_pattern is set before fs.suid_dumpable=2, because with that the kernel
warns about a relative pattern; they are restored in reverse order. Source: fs/coredump.c,
kernel.rst, core(5).

The file with the old values, as `register` writes it:

    core                             kernel.core_pattern; may be empty, and bytes that are not UTF-8
    kernel.core_pipe_limit=0
    fs.suid_dumpable=0
    set kernel.core_pipe_limit=64    what crashd has set; fs.suid_dumpable is always set to 2

Several roots form a chain: each saves the pattern of the one before it. A root that stops while
another root's pattern is set removes itself from the chain: it writes what it saved into the file
of the root that saved its pattern. A value that differs from what crashd set was chosen by someone
else, and stays. Over 400 lines, because setting and restoring must agree.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from crashd.base.files import fsync_directory, read_all, read_file, replace_file
from crashd.domain.crash.corepattern import PATTERN_MAX, handler_of, is_ours, root_of
from crashd.errors import (
    CrashdError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
    reason_of,
)
from crashd.store.paths import Paths
from crashd.store.trusted import find_untrusted

PATTERN = "kernel.core_pattern"
PIPE_LIMIT = "kernel.core_pipe_limit"
SUID_DUMPABLE = "fs.suid_dumpable"
SUID_ROOT_ONLY = "2"
"""SUID_DUMP_ROOT of include/linux/sched/coredump.h: dump, readable only by root."""
PROC = Path("/proc")
_ORDER = (PATTERN, PIPE_LIMIT, SUID_DUMPABLE)
_DEFAULTS = {PATTERN: "core", PIPE_LIMIT: "0", SUID_DUMPABLE: "0"}  # the kernel's own
_LARGEST = {PIPE_LIMIT: 2**31 - 1, SUID_DUMPABLE: 2}
_VALUE_MAX = 4096
_PREVIOUS_MAX = 1024
_CHAIN_MAX = 16  # roots in the chain
_SET = f"set {PIPE_LIMIT}="


@dataclass(frozen=True, slots=True)
class Registration:
    """The values to register; fs.suid_dumpable is always 2."""

    pattern: str
    """Built by crashd.domain.crash.corepattern.build_pattern."""
    pipe_limit: int
    handler: str
    """The program of a pipe pattern; it distinguishes our patterns from others."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """The contents of the file with the old values."""

    before: Mapping[str, str]
    pipe_limit: str | None = None
    """The value that crashd has set since; None if the file does not say."""

    def undo(self, present: Mapping[str, str]) -> dict[str, str]:
        """Return `present`, with old values for the companions that are as crashd set them."""
        ours = {PIPE_LIMIT: self.pipe_limit, SUID_DUMPABLE: SUID_ROOT_ONLY}
        return {
            name: self.before[name] if value == ours.get(name) else value
            for name, value in present.items()
        }


def _path(name: str, proc: Path) -> Path:
    if name not in _ORDER:
        raise ValueError(f"{name!r} is not a sysctl of crashd's")
    return proc / "sys" / name.replace(".", "/")


def read(name: str, proc: Path = PROC) -> str:
    """Read one of the three; bytes that are not UTF-8 become surrogates.

    Raises:
        UnsupportedError: the kernel does not have it.
    PermissionDeniedError: the caller may not read it.
    UnavailableError: it cannot be read, or holds an invalid value.
    """
    try:
        # the kernel's own file, whose errors are told apart
        fd = os.open(_path(name, proc), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            raw = read_all(fd, _VALUE_MAX)
        finally:
            os.close(fd)
    except OSError as e:
        raise _not_read(name, e) from e
    value = os.fsdecode(raw.removesuffix(b"\n"))
    if not _is_value(name, value):
        raise UnavailableError(f"{name} holds {value!r:.80}, which is not a valid value")
    return value


def write(name: str, value: str, proc: Path = PROC) -> None:
    """Set one of the three, and read it back; restore the old value if that differs.

    The kernel silently cuts a long pattern, and Linux 6.16 and 6.17 accept invalid ones that can
    then not be read.

    Raises:
        ValueError: the value cannot be written as one line.
        PermissionDeniedError: the caller is not root.
        UnsupportedError: it is read-only (a container), or the kernel refuses or does not keep it.
        UnavailableError: it cannot be written for another reason.
    """
    if not _is_value(name, value):
        raise ValueError(f"{value!r} is not a value of {name}")
    before = read(name, proc)
    try:
        _put(name, value, proc)
    except OSError as e:
        raise _not_written(name, before, value, e) from e
    after: str | None = None
    shown = ""
    try:
        after = read(name, proc)
        shown = repr(after)
    except CrashdError as e:
        shown = f"an error ({e})"
    if after == value:
        return
    outcome = f"{before!r} was restored"
    try:
        _put(name, before, proc)
    except OSError as e:
        outcome = f"{before!r} could not be restored: {reason_of(e)}"
    raise UnsupportedError(
        f"{name} was set to {value!r} and then read as {shown}; {outcome}",
        hint="the kernel does not keep such a value, or another program sets it at the same time",
    )


def owned(handler: str, proc: Path = PROC) -> bool:
    """Return whether kernel.core_pattern pipes to `handler` with our arguments; raises like `read`.

    Does not check whether that program exists.
    """
    return is_ours(read(PATTERN, proc), handler)


def register(wanted: Registration, previous_file: Path, proc: Path = PROC) -> bool:
    """Set all three, after saving their old values; return False if they are already set.

    The file is kept if the pattern already names this handler: the value before it is in the file,
    or was never known.

    Raises:
        CrashdError: the old values could not be saved, or a new one not be set. Values already set
            are restored as far as possible; the message says which ones could not be.
    """
    values = {
        PATTERN: wanted.pattern,
        PIPE_LIMIT: str(wanted.pipe_limit),
        SUID_DUMPABLE: SUID_ROOT_ONLY,
    }
    before = {name: read(name, proc) for name in _ORDER}
    if before == values:
        return False
    old = _load(previous_file)
    saved = old and replace(old, pipe_limit=values[PIPE_LIMIT])
    if not is_ours(before[PATTERN], wanted.handler):
        if old is not None and _hand_over(wanted.handler, before[PATTERN], old):
            old = None
        # another program changed the pattern, but the companions may still be crashd's
        saved = _Saved(old.undo(before) if old else before, values[PIPE_LIMIT])
    if saved is not None and saved != old:
        _save(previous_file, saved)
    done: list[str] = []
    try:
        for name in _ORDER:
            if before[name] != values[name]:
                write(name, values[name], proc)
                done.append(name)
    except CrashdError as e:
        left = _put_back(before, list(reversed(done)), proc)
        if left:
            raise UnavailableError(f"{e}; then {left[0]}", hint=e.hint) from e
        with contextlib.suppress(UnavailableError):
            if old is not None:
                _save(previous_file, old)
            elif saved is not None:
                _remove(previous_file)
        raise
    return True


def restore(handler: str, previous_file: Path, proc: Path = PROC) -> str:
    """Restore all three from `previous_file`, if the pattern is still ours; return what was done.

    Another program's pattern stays, because its owner set it on purpose. If that is another crashd,
    it gets what we saved; if not, companions that crashd set are restored. Without a valid file,
    the kernel's defaults are set. The file is removed, unless it could not be handed to another
    crashd.

    Raises:
        CrashdError: one of them cannot be set. The others are set, and the file is kept.
    """
    present = read(PATTERN, proc)
    saved = _load(previous_file)
    if not is_ours(present, handler):
        outcome = _step_aside(handler, present, saved, previous_file, proc)
        if not owned(handler, proc):
            return outcome
        # the other crashd stopped at that moment, and restored our pattern
    standing = _find_standing(handler, saved)
    values = standing or _DEFAULTS
    left = _put_back(values, list(reversed(_ORDER)), proc)
    if left:
        raise left[0]
    _remove(previous_file)
    source = "" if standing else ", the kernel's default, because the old value is unknown"
    return f"{PATTERN} is {values[PATTERN]!r} again{source}"


def _step_aside(
    handler: str, present: str, saved: _Saved | None, previous_file: Path, proc: Path
) -> str:
    outcome = f"{PATTERN} is {present!r}, not crashd's, and stays"
    if saved is None:
        pass
    elif root_of(present) is not None:
        if not _hand_over(handler, present, saved):
            return f"{outcome}; the old values are kept in {previous_file}"
        outcome += "; the old values were handed over to that crashd"
    else:
        # fs.suid_dumpable first: with 2 the kernel warns about a relative pattern
        names = list(reversed(_ORDER[1:]))
        companions = {name: read(name, proc) for name in names}
        wanted = saved.undo(companions)
        left = _put_back(wanted, names, proc)
        if left:
            raise left[0]
        outcome += "".join(
            f"; {name} is {wanted[name]!r} again"
            for name in names
            if wanted[name] != companions[name]
        )
    _remove(previous_file)
    return outcome


# -- the chain of roots ----------------------------------------------------------------------------


def _hand_over(handler: str, present: str, saved: _Saved) -> bool:
    """Remove the root of `handler` from the chain that begins with the pattern `present`.

    Return False if the chain does not lead to it.
    """
    pattern = present
    for _ in range(_CHAIN_MAX):
        root = root_of(pattern)
        if root is None:
            return False
        file = Paths(Path(root)).previous_core_pattern
        other = _load_trusted(file)
        if other is None:
            return False
        pattern = other.before[PATTERN]
        ours = is_ours(pattern, handler)
        if ours or root_of(pattern) is None:
            before = saved.undo(other.before)
            if ours:
                before[PATTERN] = saved.before[PATTERN]
            _save(file, replace(other, before=before))
            return True
    return False


def _find_standing(handler: str, saved: _Saved | None) -> Mapping[str, str] | None:
    """Return the old values that can still be restored.

    A saved pattern of another crashd that no longer exists is replaced by what that one saved.
    """
    for _ in range(_CHAIN_MAX):
        if saved is None or is_ours(saved.before[PATTERN], handler):
            return None  # restoring it would leave a handler that is about to be removed
        root = root_of(saved.before[PATTERN])
        if root is None or not _is_gone(saved.before[PATTERN]):
            return saved.before
        file = Paths(Path(root)).previous_core_pattern
        older = _load_trusted(file)
        if older is not None:
            before = {**older.undo(saved.before), PATTERN: older.before[PATTERN]}
            older = replace(older, before=before)
        saved = older
    return None


def _is_gone(pattern: str) -> bool:
    path = handler_of(pattern) or pattern.removeprefix("@@")
    # a program that others can replace or create counts as gone: the kernel would run theirs
    return not os.path.exists(path) or find_untrusted(Path(path)) is not None


# -- errors ----------------------------------------------------------------------------------------


def _not_read(name: str, e: OSError) -> CrashdError:
    message = f"cannot read {name}: {reason_of(e)}"
    if e.errno == errno.ENOENT:
        return UnsupportedError(
            message, hint="the kernel was built without CONFIG_COREDUMP, or /proc is not mounted"
        )
    if e.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(message, hint="run as root")
    hint = None
    if e.errno == errno.EINVAL and name == PATTERN:
        hint = f"the kernel has a pattern that cannot be read: sysctl -w {PATTERN}=core"
    return UnavailableError(message, hint=hint)


def _not_written(name: str, before: str, value: str, e: OSError) -> CrashdError:
    message = f"cannot set {name} from {before!r} to {value!r}: {reason_of(e)}"
    if e.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(message, hint="run as root on the host itself")
    if e.errno == errno.EROFS:
        hint = "/proc/sys is read-only, as in a container: run `crashctl install` on the host"
        return UnsupportedError(message, hint=hint)
    if e.errno == errno.EINVAL:
        hint = "the kernel refuses this value, or accepts it only from the host's mount namespace"
        return UnsupportedError(message, hint=hint)
    return UnavailableError(message)


# -- writing ---------------------------------------------------------------------------------------


def _is_value(name: str, value: str) -> bool:
    if name == PATTERN:
        raw = os.fsencode(value)
        return len(raw) <= PATTERN_MAX and not any(byte in raw for byte in b"\n\0")
    digits = value.isascii() and value.isdigit() and len(value) <= 10
    return digits and int(value) <= _LARGEST[name]


def _put(name: str, value: str, proc: Path) -> None:
    fd = os.open(_path(name, proc), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # One write(2), because the kernel takes each as a whole new value. Reading back shows a
        # short one.
        os.write(fd, os.fsencode(value) + b"\n")
    finally:
        os.close(fd)


def _put_back(values: Mapping[str, str], names: list[str], proc: Path) -> list[CrashdError]:
    """Set each value, and return the errors; one failure does not stop the others."""
    errors: list[CrashdError] = []
    for name in names:
        try:
            if read(name, proc) != values[name]:
                write(name, values[name], proc)
        except CrashdError as e:
            errors.append(e)
    return errors


# -- the file with the old values ------------------------------------------------------------------


@contextlib.contextmanager
def _file_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UnavailableError(f"cannot {what} {path}: {reason_of(e)}") from e


def _save(previous_file: Path, saved: _Saved) -> None:
    lines = [saved.before[PATTERN], *(f"{name}={saved.before[name]}" for name in _ORDER[1:])]
    if saved.pipe_limit is not None:
        lines.append(_SET + saved.pipe_limit)
    staged = previous_file.with_name(f".{previous_file.name}.{secrets.token_hex(8)}")
    data = os.fsencode("".join(f"{line}\n" for line in lines))
    with _file_errors("save the present settings in", previous_file):
        previous_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(
            previous_file, data, staged=staged, exclusive=True, sync=True, sync_directory=True
        )


def _remove(previous_file: Path) -> None:
    with _file_errors("remove", previous_file):
        try:
            previous_file.unlink()
        except FileNotFoundError:
            return
        fsync_directory(previous_file.parent)


def _load_trusted(previous_file: Path) -> _Saved | None:
    """Read the file of another root; None unless only root or we can have written it.

    Its contents decide which program the kernel runs as root.
    """
    return None if find_untrusted(previous_file, always=True) else _load(previous_file)


def _load(previous_file: Path) -> _Saved | None:
    """Read the file; None unless it is complete and valid, because a part of it proves nothing."""
    try:
        raw = read_file(previous_file, _PREVIOUS_MAX + 1)
    except OSError:
        return None
    lines = os.fsdecode(raw).split("\n")
    if lines.pop():
        return None
    pipe_limit = None
    if len(lines) == len(_ORDER) + 1:
        line = lines.pop()
        pipe_limit = line.removeprefix(_SET)
        if pipe_limit == line or not _is_value(PIPE_LIMIT, pipe_limit):
            return None
    if len(lines) != len(_ORDER):
        return None
    values = {PATTERN: lines[0]}
    for name, line in zip(_ORDER[1:], lines[1:], strict=True):
        key, _, value = line.partition("=")
        if key != name:
            return None
        values[name] = value
    sound = all(_is_value(name, value) for name, value in values.items())
    return _Saved(values, pipe_limit) if sound else None
