"""Long output on a terminal goes through a pager, with the variables and rules of systemctl(1).

What fits on the screen is printed as it is. SYSTEMD_PAGER and PAGER name the pager, SYSTEMD_LESS
gives the options of less; an empty name, or `cat`, means none. less runs in its secure mode, in
which it starts no programs and opens no files, unless the caller is the owner of the session. In
it no other pager is used, because no other one has such a mode. Root who did not log in as root
(sudo) gets none unless SYSTEMD_PAGERSECURE is set: the environment may be another user's.
"""

import io
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO

DEFAULT = "less"
LESS_OPTIONS = "FRSXMK"
_FALSE = frozenset({"0", "no", "n", "false", "f", "off"})
_NONE = frozenset({"", "cat"})


def choose_pager(
    environ: Mapping[str, str], *, owns_session: bool, is_root: bool = False
) -> tuple[list[str], bool]:
    """Return the pager's command line, empty for none, and whether it is to be secure."""
    wanted = environ.get("SYSTEMD_PAGER", environ.get("PAGER"))
    if wanted is not None and wanted.strip() in _NONE:
        return [], True
    asked = environ.get("SYSTEMD_PAGERSECURE")
    if is_root and not owns_session and asked is None:
        return [], True
    secure = not owns_session if asked is None else asked.strip().lower() not in _FALSE
    if not wanted or (secure and asked is None):
        return [DEFAULT], secure
    try:
        return shlex.split(wanted), secure
    except ValueError:
        return [DEFAULT], secure


def owns_session(loginuid: str, euid: int) -> bool:
    """Return whether the caller is who logged in, by the text of /proc/self/loginuid."""
    return loginuid.strip() == str(euid)


def pager_environment(environ: Mapping[str, str], *, secure: bool) -> dict[str, str]:
    """Build the pager's environment."""
    made = {**environ, "LESS": environ.get("SYSTEMD_LESS", LESS_OPTIONS)}
    made["LESSCHARSET"] = environ.get("SYSTEMD_LESSCHARSET", "utf-8")
    made.pop("LESSSECURE", None)
    if secure:
        made["LESSSECURE"] = "1"
    return made


class Paged(io.TextIOBase):
    """A stream that keeps what is written until it exceeds the screen, then starts the pager."""

    def __init__(self, terminal: TextIO, width: int, height: int) -> None:
        self._terminal = terminal
        self._width = width
        self._left = height - 1  # the prompt needs a line
        self._column = 0
        self._kept: list[str] = []
        self._out: TextIO | None = None
        self._pid: int | None = None

    def write(self, text: str) -> int:
        """Write, or keep for later."""
        if self._out is not None:
            return self._out.write(text)
        self._kept.append(text)
        *ended, rest = text.split("\n")
        for line in ended:
            self._left -= max(1, -(-(self._column + len(line)) // self._width))
            self._column = 0
        self._column += len(rest)
        if self._left < 0:
            self._start()
        return len(text)

    def _start(self) -> None:
        self._out = self._terminal
        argv, secure = choose_pager(
            os.environ, owns_session=_owns_session(), is_root=os.geteuid() == 0
        )
        if argv:
            reading, writing = os.pipe()
            environ = pager_environment(os.environ, secure=secure)
            try:
                self._pid = os.posix_spawnp(
                    argv[0],
                    argv,
                    environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)],
                    setsigdef=[signal.SIGINT, signal.SIGPIPE],
                )
            except OSError:
                os.close(writing)
            else:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # means something to the pager
                raw = io.FileIO(writing, "w")
                self._out = io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=False)
            os.close(reading)
        kept, self._kept = "".join(self._kept), []
        self._out.write(kept)

    def finish(self) -> None:
        """Print what was kept, or wait until the pager ends."""
        if self._out is None:
            self._terminal.write("".join(self._kept))
            self._kept = []
            return
        if self._pid is not None:
            with suppress(BrokenPipeError):  # the reader has seen enough
                self._out.close()
            os.waitpid(self._pid, 0)
            self._pid = None


def _owns_session() -> bool:
    try:
        with open("/proc/self/loginuid") as file:
            return owns_session(file.read(), os.geteuid())
    except OSError:
        return False


@contextmanager
def paging(terminal: TextIO, width: int) -> Iterator[TextIO]:
    """Yield the stream to print to, and see it through to the end."""
    try:
        height = os.get_terminal_size(terminal.fileno()).lines or 24
    except OSError:
        height = 24
    paged = Paged(terminal, width, height)
    try:
        yield paged  # type: ignore[misc]  # TextIOBase is what print() needs of TextIO
    except BrokenPipeError:
        if paged._pid is None:
            raise
    finally:
        paged.finish()
