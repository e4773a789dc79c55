"""Fetches debug information by build-id from the debuginfod servers that the administrator named,
if `analysis.debuginfod` allows it. Only crashctl does so: the daemon has no network.

What comes is kept in a directory of root's that the daemon also searches; only a file with that
build-id and with debug information gets a name there.

Source: debuginfod(8), `GET /buildid/BUILDID/debuginfo`.
"""

import contextlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from crashd.base.files import read_space, write_all
from crashd.cli.context import Context
from crashd.domain.elf.vmlinux import parse_vmlinux
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.edge.sandbox.modulefiles import read_alternate_link
from crashd.errors import CrashdError, FormatError, reason_of
from crashd.store.entry import open_entry

KEPT_MAX: Final = 256
KEPT_BYTES: Final = 4 << 30
"""Limits on the fetched files that are kept; a vmlinux has half a gigabyte."""
FETCHED_MAX: Final = 32
"""How many files are fetched for one crash."""
FILE_MAX: Final = 4 << 30
FETCH_SECONDS: Final = 1800.0
_IDLE_SECONDS = 60.0
_CHUNK = 1 << 20
_KEEP_FREE_MAX = 1 << 30
_BUILD_ID = re.compile(r"(?:[0-9a-f]{2}){8,32}")
_SERVERS_MAX = 8


def fetch_vmlinux(context: Context, build_id: object) -> Path | None:
    """Fetch the vmlinux with a build-id; None if that is not allowed, or no server has it, which is
    said.
    """
    if not _is_build_id(build_id) or not _is_allowed(context):
        return None
    return _fetch_from_any(context, _servers(context), str(build_id), "the vmlinux")


def fetch_debug_info(context: Context, crash_id: str) -> None:
    """Fetch the debug information that the stacks of a process crash lack, with the files that it
    shares with others (dwz); say what no server has.
    """
    if not _is_allowed(context):
        return
    result = None
    with contextlib.suppress(CrashdError), open_entry(context.paths, crash_id) as entry:
        result = entry.read_analysis()
    modules = ((result or {}).get("facts") or {}).get("modules") or ()
    missing = {
        module["build_id"]: printable(str(module.get("name")))
        for module in modules
        if module.get("used") and not module.get("debug_info")
        if _is_build_id(module.get("build_id"))
    }
    servers = _servers(context) if missing else []
    for build_id, name in [*missing.items()][:FETCHED_MAX]:
        found = _fetch_from_any(context, servers, build_id, f"the debug information of {name}")
        shared = _alternate_of(found) if found is not None else None
        if shared is not None and not _cached(context, shared).exists():
            _fetch_from_any(context, servers, shared, f"what {name} shares with others")


def _alternate_of(path: Path) -> str | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        link = read_alternate_link(fd)
    finally:
        os.close(fd)
    return link[1] if link is not None and _is_build_id(link[1]) else None


def _is_build_id(value: object) -> bool:
    return isinstance(value, str) and _BUILD_ID.fullmatch(value) is not None


def _fetch_from_any(
    context: Context, servers: Iterable[str], build_id: str, what: str
) -> Path | None:
    for server in servers:
        shown = printable(server)
        context.note(f"fetching {what} from {shown}")
        try:
            return _fetch(context, f"{server}/buildid/{build_id}/debuginfo", build_id)
        except (CrashdError, OSError, http.client.HTTPException, ValueError) as e:
            context.warn(f"{shown}: {_why(e)}")
    return None


def _cached(context: Context, build_id: str) -> Path:
    return context.paths.debug_cache / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"


def _is_allowed(context: Context) -> bool:
    """Return whether the configuration allows it, and the caller may write to the cache."""
    if os.geteuid() != 0:
        return False
    from crashd.configuration import files as configfiles

    try:
        return configfiles.load(context.paths).analysis.debuginfod
    except CrashdError:
        return False  # the caller warns about its configuration itself


def _servers(context: Context) -> list[str]:
    """List the servers of the environment, else of elfutils' own files; warn if there are none."""
    words = os.environ.get("DEBUGINFOD_URLS", "").split()
    if not words:
        directory = context.paths.root / "etc/debuginfod"
        with contextlib.suppress(OSError):
            for path in sorted(directory.glob("*.urls"))[:_SERVERS_MAX]:
                words += path.read_text(errors="replace")[:4096].split()
    urls = (word.rstrip("/") for word in words if word.startswith(("https://", "http://")))
    servers = list(dict.fromkeys(urls))[:_SERVERS_MAX]
    if not servers:
        context.warn("analysis.debuginfod is on, but DEBUGINFOD_URLS names no server")
    return servers


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return "it has no such file" if error.code == 404 else f"HTTP status {error.code}"
    if isinstance(error, urllib.error.URLError):
        return printable(str(error.reason))
    return printable(reason_of(error) if isinstance(error, CrashdError | OSError) else str(error))


def _fetch(context: Context, url: str, build_id: str) -> Path:
    target = _cached(context, build_id)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    staged = target.with_name(f".{os.getpid()}")
    fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with urllib.request.urlopen(url, timeout=_IDLE_SECONDS) as answer:
            for chunk in _read(answer, fd):
                write_all(fd, chunk)
        found = parse_vmlinux(lambda offset, size: os.pread(fd, size, offset))
        if found.build_id != build_id or not found.has_debug_info:
            raise FormatError("what it sent is another file, or has no debug information")
        os.fchmod(fd, 0o644)
        os.rename(staged, target)
    finally:
        os.close(fd)
        staged.unlink(missing_ok=True)
    _forget_old(context, target)
    return target


def _read(answer: IO[bytes] | Any, fd: int) -> Iterator[bytes]:
    """Read an answer within the limits of size, time and disk.

    Raises:
        CrashdError: it exceeds one.

    """
    deadline, size = time.monotonic() + FETCH_SECONDS, 0
    while chunk := answer.read(_CHUNK):
        size += len(chunk)
        space = read_space(fd)
        if size > FILE_MAX:
            raise CrashdError(f"it sent more than {format_size(FILE_MAX)}")
        if time.monotonic() > deadline:
            raise CrashdError(f"it took longer than {FETCH_SECONDS:.0f} s")
        if space.free_bytes - len(chunk) < min(_KEEP_FREE_MAX, space.total_bytes // 20):
            raise CrashdError("there is no room for it on the disk")
        yield chunk


def _forget_old(context: Context, newest: Path) -> None:
    """Delete all but the newest files, within the limits of count and size."""
    found = []
    for path in (context.paths.debug_cache / ".build-id").glob("*/*.debug"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            found.append((path == newest, status.st_mtime_ns, path, status.st_size))
    size = 0
    for number, (_, _, path, size_bytes) in enumerate(sorted(found, reverse=True)):
        size += size_bytes
        if number and (number >= KEPT_MAX or size > KEPT_BYTES):
            with contextlib.suppress(OSError):
                path.unlink()
