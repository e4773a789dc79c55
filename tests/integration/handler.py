"""Run the installed handler as the kernel does, but for who starts it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crashd.store.entry import prepare
from crashd.store.handlerfile import NATIVE, install_handler
from crashd.store.paths import Paths


@dataclass
class HandlerRun:
    """A started handler; its end of the pipe is `write_fd`."""

    pid: int
    write_fd: int

    def feed(self, core: bytes) -> None:
        """Write the core and end the stream; a reader that left early is no error."""
        view = memoryview(core)
        try:
            while view:
                view = view[os.write(self.write_fd, view) :]
        except BrokenPipeError:
            pass
        self.end()

    def end(self) -> None:
        """End the stream."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def wait(self) -> int:
        """Wait for its exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


PYTHON_ONLY = Path("/nonexistent")
"""For `install_handler`: as where no compiler was."""


def make_root(directory: Path, built: Path = NATIVE) -> Paths:
    """Make a root with directories in it and the handler, native where `built` is there."""
    paths = Paths(directory)
    paths.runtime_dir.mkdir(parents=True)
    prepare(paths)
    install_handler(paths, built)
    return paths


def start_handler(
    paths: Paths,
    arguments: Sequence[str | bytes],
    *,
    stdin: int | None = None,
    pidfd: int | None = None,
) -> HandlerRun:
    """Start the handler with an empty environment, 1 and 2 closed, a pipe on 0 (or `stdin`), and
    `pidfd` on 3.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    handler = os.fsencode(paths.handler)
    pid = os.posix_spawn(
        paths.handler,
        [handler, *(os.fsencode(a) for a in arguments)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, read_fd if stdin is None else stdin, 0),
            (os.POSIX_SPAWN_CLOSE, 1),
            (os.POSIX_SPAWN_CLOSE, 2),
            *([] if pidfd is None else [(os.POSIX_SPAWN_DUP2, pidfd, 3)]),
        ],
    )
    os.close(read_fd)
    return HandlerRun(pid, write_fd)
