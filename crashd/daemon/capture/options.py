"""The configuration of a capture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from crashd.domain.crash.record import RecordLimits
from crashd.domain.crash.scrub import EnvironMode


@dataclass(frozen=True, slots=True)
class Options:
    """The configuration of a capture; sent to the workers as JSON."""

    engine: str
    """`auto`, `memory` or `stream`."""
    max_core: int | None
    honour_rlimit: bool
    keep_free_bytes: int
    level: int
    threads: int
    deadline_ns: int
    page_timeout_ns: int
    environ: EnvironMode
    patterns: tuple[str, ...]
    keep_files_bytes: int = 0
    """How much all files that are kept with crashes may use; 0 keeps none."""
    credit_bytes: int = 0
    """How far below `keep_free_bytes` the capture may go for a moment: retention is freeing it."""
    leave_bytes: int = 0
    """Space beyond `keep_free_bytes` to leave for the crashes of other users."""

    @property
    def limits(self) -> RecordLimits:
        """Return the limits on what the record may keep."""
        return RecordLimits(self.max_core, self.honour_rlimit, self.environ, self.patterns)

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Options":
        """Parse the output of `to_json`."""
        values = {item.name: document[item.name] for item in fields(cls)}
        values["patterns"] = tuple(values["patterns"])
        return cls(**values)
