"""One piece of work on one crash's entry, and its stage."""

import os
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Protocol

from crashd.store.entry import Entry

SMALL_BYTES = 64 << 20
"""Upper bound on a small core: large ones never take the part of the buffer, nor the place to store
in, that are kept for it.
"""


class Kind(StrEnum):
    """The work to do."""

    CAPTURE = "capture"
    """Take a crash that the handler offers."""
    SOCKET = "socket"
    """Take a crash that the kernel offers."""
    IMPORT = "import"
    """Take a crash from the spool."""
    SALVAGE = "salvage"
    """Finish an entry whose writer died."""

    @property
    def is_live(self) -> bool:
        """Return whether a process is held until its core is read."""
        return self in (Kind.CAPTURE, Kind.SOCKET)


class Stage(Enum):
    """How far a job is."""

    QUEUED = "queued"
    """It waits for a worker."""
    HELD = "held"
    """A worker reads the core; the process is held."""
    RAW = "raw"
    """The process is released; its core waits in the worker's buffer and in the spill."""
    STORING = "storing"
    """The core is compressed, and written to the store."""


class Owner(Protocol):
    """The submitter of a job, called in the daemon's loop when the job ends."""

    def finished(self, job: "Job") -> None:
        """Note that the entry is final."""

    def failed(self, job: "Job") -> None:
        """Note that an import failed; the crash stays in the spool."""

    def given_back(self, job: "Job") -> None:
        """Note that the handler keeps the crash, and spools it."""


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work; owns the entry and the descriptors until they are passed on."""

    kind: Kind
    entry: Entry
    descriptors: list[int]
    owner: Owner
    more: dict[str, Any] = field(default_factory=dict)
    """Message fields for the worker in addition to kind and id."""
    spooled: str | None = None
    """The name in the spool, for an import."""
    uid: int | None = None
    """The user whose process crashed, so that a user's crashes do not delay those of others."""
    stage: Stage = Stage.QUEUED
    with_proc: bool = True
    accepted: bool = True
    """Whether the handler has its receipt, which the worker sends."""
    identified: bool = False
    retried: bool = False
    poisonous: bool = False
    """Whether its import killed workers, so that it must not be tried again."""
    deadline_ns: int | None = None
    """The end of the present step, by the loop's clock; None while the worker waits for us."""
    give_back_ns: int = 0
    """CLOCK_MONOTONIC, like the handler's timeout: a handler without a receipt gives up then."""
    held_ns: int = 0
    """CLOCK_MONOTONIC at which a worker began to read the core."""
    decision: dict[str, Any] | None = None
    """The answer to its worker: what is kept, with which resources."""
    core_bytes: int = 0
    """Size of the core without holes; known for a spooled core, or once the process is released."""

    @property
    def id(self) -> str:
        """Return the crash's id."""
        return self.entry.id

    def let_go(self) -> None:
        """Close our copies of the descriptors."""
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors.clear()

    def close(self) -> None:
        """Close everything that the job owns."""
        self.let_go()
        self.entry.close()
