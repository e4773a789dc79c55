"""Recover crashes left unfinished by a daemon that was killed, a handler that gave up, or a worker
that outlived its daemon.
"""

from collections.abc import Sequence
from typing import Any

from crashd.daemon.after.afterwards import Afterwards
from crashd.daemon.control import ControlServer
from crashd.daemon.indexer import Indexer
from crashd.daemon.intake.dispatch import Dispatcher
from crashd.daemon.intake.ingest import Ingest
from crashd.daemon.kernel.side import KernelSide
from crashd.daemon.loop import Loop
from crashd.domain.crash.model import LIST_KEYS, Crash, to_json

LOOK_NS = 2 * 10**9
"""Delay before the next look at crashes that are still being written, or whose core is missing."""


class Recovery:
    """Takes in unfinished crashes, and starts everything that waits for a complete index."""

    def __init__(
        self,
        loop: Loop,
        indexer: Indexer,
        dispatcher: Dispatcher,
        ingest: Ingest,
        kernel: KernelSide,
        afterwards: Afterwards,
    ) -> None:
        self._loop = loop
        self._indexer = indexer
        self._dispatcher = dispatcher
        self._ingest = ingest
        self._kernel = kernel
        self._afterwards = afterwards

    def recover(self, ids: Sequence[str]) -> None:
        """Take in crashes left by the handler and by an earlier daemon; `ids` are in state
        `capturing`. Runs in the loop.
        """
        self._ingest.allow_import()
        self._kernel.allow()
        self._afterwards.begin()
        self._ingest.import_spool()
        others = set(ids).difference(self._dispatcher.ids())
        waiting = self._ingest.recover(sorted(others), "the daemon was killed during the capture")
        if waiting:
            self.look_soon()

    def look_soon(self) -> None:
        """Make the indexer report unfinished crashes, after LOOK_NS."""
        if not self._loop.is_set("unfinished"):
            self._loop.after("unfinished", LOOK_NS, self._indexer.look_for_unfinished)


class Finished:
    """The indexer's audience: passes each result to the thread that works on it."""

    def __init__(
        self, loop: Loop, afterwards: Afterwards, control: ControlServer, recovery: Recovery
    ) -> None:
        self._loop = loop
        self._afterwards = afterwards
        self._control = control
        self._recovery = recovery

    def finished(self, crash: Crash) -> None:
        """Start a crash's analysis and notices, and show it to the readers of `follow`."""
        self._afterwards.captured(crash)
        self._publish("crash", crash)

    def explained(self, crash: Crash) -> None:
        """Show the readers of `follow` what the analysis found, if it found anything."""
        if crash.signature is not None:
            self._publish("explained", crash)

    def _publish(self, what: str, crash: Crash) -> None:
        if self._control.has_followers:
            self._control.publish(what, _listed(crash), crash.owner_uid)

    def unfinished(self, ids: Sequence[str]) -> None:
        """Make the loop recover crashes."""
        self._loop.call_soon(lambda: self._recovery.recover(ids))


def _listed(crash: Crash) -> dict[str, Any]:
    document = to_json(crash)
    return {key: document.get(key) for key in LIST_KEYS}
