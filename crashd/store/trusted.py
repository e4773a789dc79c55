"""What root trusts: files that decide what root does, and the paths that lead to them."""

import os
import re
import stat
from pathlib import Path

from crashd.base.files import NotRegularError, open_regular, read_all
from crashd.domain.text import printable
from crashd.errors import ConfigError, reason_of
from crashd.store.paths import Paths

LINKS_MAX = 40
"""MAXSYMLINKS of include/linux/namei.h."""


def read_trusted(path: Path, max_bytes: int) -> bytes:
    """Read a regular file; as root, only one that nobody else can change. Never blocks.

    Links are followed, because configuration management uses them; others must not be able to
    replace one, nor any directory on the way.

    Raises:
        ConfigError: it cannot be read, is not a regular file, is too large, or others can change
        it.

    """
    name = printable(os.fsencode(path))
    try:
        fd = open_regular(path, follow=True)
        try:
            _refuse(name, os.fstat(fd))
            _refuse(printable(os.fsencode(path.parent)), os.stat(path.parent))
            if why := find_untrusted(path):
                raise untrusted(why)
            raw = read_all(fd, max_bytes + 1)
        finally:
            os.close(fd)
    except NotRegularError as e:
        raise ConfigError(f"{name}: is not a regular file") from e
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read: {reason_of(e)}") from e
    if len(raw) > max_bytes:
        raise ConfigError(f"{name}: is larger than {max_bytes} bytes")
    return raw


def _refuse(name: str, status: os.stat_result) -> None:
    if why := distrust(status.st_uid, status.st_mode, os.geteuid()):
        raise ConfigError(
            f"{name}: {why}",
            hint="it decides what root does: make it root's (chown root), "
            "and writable by nobody else (chmod go-w)",
        )


def distrust(owner: int, mode: int, euid: int, *, sticky: bool = True) -> str | None:
    """Return why root must not trust a file or directory; None if it may, or `euid` is not root.
    A sticky directory that others can write may be trusted if `sticky`.
    """
    if euid != 0:
        return None
    if owner != 0:
        return f"belongs to uid {owner} and not to root"
    # In a sticky directory nobody else can replace root's files.
    is_sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not (is_sticky and sticky):
        return "can be written by others than root"
    return None


def find_untrusted(
    path: Path, *, itself: bool = True, always: bool = False, sticky: bool = True
) -> str | None:
    """Return the first component of a path that users other than root can replace, and why; None
    if all are safe, or we are not root.

    The path is followed as the kernel does, through every link (path_resolution(7)). Only root can
    change what the walk has passed. A missing component ends the walk; it is safe if only root can
    make it. Without `itself`, the last component is not judged, only the way there. With `always`,
    users other than root and us count even if we are not root. Without `sticky`, nothing is looked
    at below a directory in which others can make anything, such as /tmp: a user's file system
    mounted there may never answer. POSIX ACLs need no check: with one, the group bits of a mode are
    its mask (acl(5)).
    """
    if os.geteuid() != 0 and not always:
        return None
    left, links = list(reversed(path.absolute().parts)), 0
    current = left.pop()
    device = (top := os.lstat(current)).st_dev
    if why := _distrust(top, sticky):
        return f"{current} {why}"
    while left:
        if (name := left.pop()) == "..":
            current = os.path.dirname(current)
            continue
        here = os.path.join(current, name)
        shown = printable(os.fsencode(here))
        try:
            status = os.lstat(here)
        except FileNotFoundError:
            shared = os.lstat(current).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            return f"{shown} is missing, and others than root can make it" if shared else None
        except OSError as e:
            return f"{shown} cannot be looked at: {reason_of(e)}"
        if (left or itself or stat.S_ISLNK(status.st_mode)) and (why := _distrust(status, sticky)):
            return f"{shown} {why}"
        if status.st_dev != device:
            device = status.st_dev
            if why := _distrust_mount(device):
                return f"{shown} {why}"
        if not stat.S_ISLNK(status.st_mode):
            current = here
            continue
        links += 1
        if links > LINKS_MAX:
            return f"{shown} is one link too many"
        target = os.readlink(here)
        current = "/" if target.startswith("/") else current
        left += reversed([part for part in target.split("/") if part not in ("", ".")])
    return None


def _distrust(status: os.stat_result, sticky: bool) -> str | None:
    """Return why users other than root and us can replace what lstat(2) found."""
    owner = 0 if status.st_uid == os.geteuid() else status.st_uid
    mode = status.st_mode
    # a link's mode means nothing
    return distrust(owner, 0 if stat.S_ISLNK(mode) else mode, 0, sticky=sticky)


def _distrust_mount(device: int) -> str | None:
    """Return which user mounted a FUSE file system: it can claim any owner (fuse(4))."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, ending = line.partition(b" - ")
            kind, _, options = ending.partition(b" ")
            if fields.split()[2] == number and kind.startswith(b"fuse"):
                users = re.search(rb"\buser_id=(\d+)", options)
                if users is None or users[1] != b"0":
                    return f"is a file system of uid {users[1].decode() if users else '?'}"
    return None


def refuse_untrusted(paths: Paths, *, handler: bool = False) -> None:
    """Refuse a root below which users other than root can replace what root trusts: configuration,
    hooks, store and sockets, and with `handler` the program that the kernel starts.

    Raises:
        ConfigError: a path is not safe; the message names its first bad component.

    """
    whole = [paths.config_file.parent, *([paths.handler.parent] if handler else [])]
    # These directories are judged where they are used: the store is closed, hooks are not run.
    ways = [paths.state_dir, paths.runtime_dir, paths.hooks]
    for path in (*whole, *ways):
        if why := find_untrusted(path, itself=path in whole):
            raise untrusted(why)


def untrusted(why: str) -> ConfigError:
    """Build the error for what `find_untrusted` found."""
    return ConfigError(
        f"{why}: root must not rely on it",
        hint="make it root's (chown root) and writable by nobody else (chmod go-w), or choose "
        "another root: --root DIR",
    )
