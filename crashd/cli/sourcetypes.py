"""What a source of crashes can do; source.py chooses one.

Apart from source.py, because `crashctl list` needs only that, and typing takes as long to load as
all else of it.
"""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from crashd.domain.crash.query import Query

if TYPE_CHECKING:
    from crashd.domain.crash.tally import Tally, Timeline


class Source(Protocol):
    """A place to read crashes from."""

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Return the crashes that match, newest first."""

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, most frequent first."""

    def info(self, crash_id: str) -> dict[str, Any]:
        """Return everything known about one crash.

        Raises:
            NotFoundError: there is no such crash, or the caller may not see it.

        """

    def open_core(self, crash_id: str) -> int:
        """Open the stored, compressed core; the caller owns the descriptor.

        Raises:
            NotFoundError: the crash has no core, or the caller may not see it.
        """

    def close(self) -> None:
        """Close the index or the connection."""


@runtime_checkable
class CountingSource(Source, Protocol):
    """A source that counts where the crashes are, because they are too many to read."""

    def tally(self, query: Query, timeline: "Timeline") -> "Tally":
        """Count crashes by subject, and in `timeline`."""

    def add_groups(self, query: Query, found: "Tally", limit: int) -> None:
        """Add the most frequent signatures to a tally."""


@runtime_checkable
class MiniSource(Source, Protocol):
    """A source that may open a mini core in place of the one that the record describes."""

    opened_mini: bool
    """Whether the core that was opened last is one."""
