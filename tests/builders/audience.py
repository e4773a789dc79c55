"""What the indexer tells, written down."""

from collections.abc import Sequence

from crashd.domain.crash.model import Crash


class Heard:
    """An audience of the indexer."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.told: list[str] = []

    def finished(self, crash: Crash) -> None:
        """Note a crash."""
        self.shown.append(crash.id)

    def explained(self, crash: Crash) -> None:
        """Note a crash."""
        self.told.append(crash.id)

    def unfinished(self, ids: Sequence[str]) -> None:
        """Note nothing."""
