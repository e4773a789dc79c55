"""One piece of work on one crash's entry, and how far it came."""

import os
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Protocol

from crashd.store.entry import Entry


class Kind(StrEnum):
    """What is to be done."""

    CAPTURE = "capture"
    """Take a crash that the handler offers."""
    SOCKET = "socket"
    """Take one that the kernel offers."""
    IMPORT = "import"
    """Take one from the spool."""
    SALVAGE = "salvage"
    """Finish an entry whose writer died."""

    @property
    def is_live(self) -> bool:
        """Whether a process is held until its core is read."""
        return self in (Kind.CAPTURE, Kind.SOCKET)


class Stage(Enum):
    """How far a job came."""

    QUEUED = "queued"
    """It waits for a worker."""
    HELD = "held"
    """A worker reads the core; the process is held."""
    RAW = "raw"
    """The process is let go; its core waits, in the worker's buffer and in the spill."""
    STORING = "storing"
    """The core is compressed, and written to the store."""


class Owner(Protocol):
    """Who submitted a job, and hears how it ended; in the daemon's loop."""

    def finished(self, job: "Job") -> None:
        """Note that the entry is final."""

    def failed(self, job: "Job") -> None:
        """Note that an import was not possible, and the spool still has all."""

    def given_back(self, job: "Job") -> None:
        """Note that the handler keeps the crash, and spools it."""


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work; owns the entry and the descriptors until they are handed on."""

    kind: Kind
    entry: Entry
    descriptors: list[int]
    owner: Owner
    more: dict[str, Any] = field(default_factory=dict)
    """What the worker is told beside kind and id."""
    spooled: str | None = None
    """Its name in the spool, of what comes from there."""
    uid: int | None = None
    """Whose process crashed: no user's crashes keep those of another waiting."""
    stage: Stage = Stage.QUEUED
    with_proc: bool = True
    accepted: bool = True
    """Whether the handler has its receipt, which the worker sends."""
    identified: bool = False
    retried: bool = False
    poisonous: bool = False
    """Whether workers died of it."""
    deadline_ns: int | None = None
    """By the loop's clock; of the present step. None: it waits for us."""
    give_back_ns: int = 0
    """CLOCK_MONOTONIC, as the handler counts: by then one without its receipt has given up."""
    held_ns: int = 0
    """CLOCK_MONOTONIC, when a worker began to read the core."""
    core_bytes: int = 0
    """Of the core, holes left out: of a spooled one, or once its process is let go."""

    @property
    def id(self) -> str:
        """The crash's id."""
        return self.entry.id

    def let_go(self) -> None:
        """Close our copies of the descriptors."""
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors.clear()

    def close(self) -> None:
        """Close all that the job owns."""
        self.let_go()
        self.entry.close()
