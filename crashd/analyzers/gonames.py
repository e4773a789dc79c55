"""Names for the frames of stripped Go programs, from the table that Go keeps for its own traces."""

from collections.abc import Mapping

from crashd.analyzers.coreimage import CoreImage
from crashd.domain.elf.gopclntab import SECTIONS, GoFunction, GoTable
from crashd.domain.elf.modules import Module
from crashd.edge.sandbox.modulefiles import find_sections, link_start


class GoNames:
    """The tables of a core's modules; each is searched once, when a frame there has no name."""

    def __init__(self, image: CoreImage) -> None:
        self._image = image
        self._files: Mapping[int, int | None] = {}
        self._tables: dict[int, GoTable | None] = {}

    def use(self, files: Mapping[int, int | None]) -> None:
        """Take the descriptors of the modules' files, by the modules' starts; they stay open."""
        self._files = files

    def function(self, module: Module | None, pc: int) -> GoFunction | None:
        """Return the Go function at an address in a module; None if it is not a Go program."""
        if module is None:
            return None
        if module.start not in self._tables:
            self._tables[module.start] = self._open(module)
        table = self._tables[module.start]
        return None if table is None else table.function(pc)

    def _open(self, module: Module) -> GoTable | None:
        """Find the table by the file's sections, and read it from the process's memory, because the
        loader wrote the address of the code into it there.
        """
        fd = self._files.get(module.start)
        if fd is None:
            return None
        sections = find_sections(fd, (*SECTIONS, b".text"))
        place = next((sections[name] for name in SECTIONS if name in sections), None)
        if place is None:
            return None
        moved = module.start - link_start(fd)
        try:
            return GoTable(self._image.read, place + moved, sections.get(b".text", 0) + moved)
        except ValueError:
            return None
