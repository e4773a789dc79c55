"""What an analyzer is, and the opened core that all of them read.

An analyzer reads one kind of facts from a core: the native stacks, or the stacks of one interpreted
language. Each is a class with three steps, listed in crashd.analyzers.main:

    applies   whether this core has what the analyzer reads
    prepare   before the seal: import what facts() needs, and return the space that it takes
    facts     behind the seal: read, and return the part of the result that it knows

The daemon gets the facts of each analyzer as soon as they are there. One that raises an exception,
or takes the whole worker down, costs its own facts and not those of the analyzers before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from crashd.analyzers.coreimage import CoreImage, FilePart
from crashd.domain.elf.modules import Module, find_modules
from crashd.edge.sandbox.modulefiles import ModuleFile
from crashd.errors import FormatError
from crashd.store.coreread import StoredCore, read_head

PROBLEMS_MAX = 20
"""Problems that one analyzer reports."""


@dataclass(frozen=True, slots=True)
class OpenedCore:
    """A core, and the files of its modules."""

    core: StoredCore
    raw_head: bytes
    image: CoreImage
    files: list[ModuleFile]
    options: Mapping[str, Any]
    """The request: what the configuration wants of the analyzers."""

    @property
    def descriptors(self) -> list[int]:
        """All that has to stay open."""
        return [fd for file in self.files for fd in (file.fd, file.debug_fd) if fd is not None]


def open_core(
    request: Mapping[str, Any], open_files: Callable[[list[Module]], list[ModuleFile]]
) -> OpenedCore:
    """Open a stored core and what can be found of its modules' files.

    Raises:
        FormatError: not an ELF core, or one that is too short to hold a thread.

    """
    core = StoredCore(request["core_fd"])
    raw, head = read_head(core)
    if not head.threads:
        raise FormatError(f"core has no thread: {'; '.join(head.problems)[:200]}")
    image = CoreImage(core, head)
    files = open_files(find_modules(head, image.read))
    image.add_files(
        [
            FilePart(mapped.start, mapped.end, mapped.offset_bytes, file.fd)
            for file in files
            if file.fd is not None
            for mapped in file.module.files
        ]
    )
    return OpenedCore(core, raw, image, files, request)


class Analyzer(ABC):
    """One kind of facts in a core."""

    name: ClassVar[str]
    """For messages."""

    def __init__(self, opened: OpenedCore) -> None:
        self.opened = opened

    @abstractmethod
    def applies(self) -> bool:
        """Return whether this core has something to read for this analyzer."""

    def prepare(self) -> int:
        """Import what facts() needs; return the bytes of /work that it takes."""
        return 0

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Read the facts: keys of the worker's result, with `problems` for what went wrong."""
