"""The files behind a core's objects: opened to be sent, and spared by retention while they are."""

import os
from dataclasses import dataclass
from pathlib import Path

from crashd.daemon.fleet.rules import Rules
from crashd.domain.crash.model import Crash, Kind
from crashd.domain.fleet.choice import is_cut
from crashd.domain.fleet.outcome import What
from crashd.errors import NotFoundError
from crashd.store.entry import open_entry
from crashd.store.kerneldumps import DumpRoot
from crashd.store.minicopy import copy_mini
from crashd.store.outbox import WaitingCore
from crashd.store.paths import Paths


@dataclass(slots=True)
class OpenedFile:
    """One file to send; owns the descriptor."""

    what: What
    key: str
    fd: int
    pack: bool = False

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_file(paths: Paths, waiting: WaitingCore, rules: Rules) -> OpenedFile:
    """Open the file that comes next of a waiting core: the core itself, or its kernel's log.

    Raises:
        CrashdError: it is gone, or not as it was.
        OSError: it cannot be opened.

    """
    with open_entry(paths, waiting.id) as entry:
        crash = entry.read()
        if crash.kind is Kind.KERNEL:
            return _open_dump(crash, waiting)
        if waiting.key is None:
            raise NotFoundError(f"crash {waiting.id} has nothing to send")
        fd = entry.open_core()
        if not is_cut(crash, rules.choice):
            return OpenedFile(What.CORE, waiting.key, fd)
        try:
            cut = entry.create_spill()
            try:
                copy_mini(fd, cut)
            except BaseException:
                os.close(cut)
                raise
        finally:
            os.close(fd)
        return OpenedFile(What.CORE, waiting.key, cut)


def _open_dump(crash: Crash, waiting: WaitingCore) -> OpenedFile:
    kernel = crash.kernel or {}
    path, inode = kernel.get("path"), kernel.get("inode")
    what = What.CORE if waiting.key is not None else What.LOG
    name = kernel.get("dump") if what is What.CORE else kernel.get("log_file")
    key = waiting.key if what is What.CORE else waiting.log_key
    if key is None or not isinstance(path, str) or not isinstance(name, str) or "/" in name:
        raise NotFoundError(f"crash {crash.id} has no such file")
    with DumpRoot(Path(path).parent) as root:
        seen = root.look(os.fsencode(Path(path).name))
        if seen.inode != inode:
            raise NotFoundError(f"{path} is another directory by now")
        with root.open(seen) as directory:
            return OpenedFile(what, key, directory.open_file(os.fsencode(name)), pack=True)
