"""What the configuration says of a capture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from crashd.domain.crash.record import RecordLimits
from crashd.domain.crash.scrub import EnvironMode


@dataclass(frozen=True, slots=True)
class Options:
    """What the configuration says of a capture; travels to the workers as JSON."""

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
    credit_bytes: int = 0
    """Of `keep_free_bytes`, for a moment: what is being made up for."""
    leave_bytes: int = 0
    """More than `keep_free_bytes`, for the crashes of other users."""

    @property
    def limits(self) -> RecordLimits:
        """What may be kept, for the record."""
        return RecordLimits(self.max_core, self.honour_rlimit, self.environ, self.patterns)

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Options":
        """Parse what `to_json` made."""
        values = {item.name: document[item.name] for item in fields(cls)}
        values["patterns"] = tuple(values["patterns"])
        return cls(**values)
