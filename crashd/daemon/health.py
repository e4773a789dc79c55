"""The answers to health probes: whether the daemon is alive, and whether it takes crashes."""

from crashd.daemon.loop import Loop

ALIVE_NS = 120 * 10**9
"""A loop that has not turned for this long is not alive (it turns at least every 30 s)."""


class Health:
    """Answers from any thread; the daemon sets `ready`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.ready = False

    def is_ready(self) -> bool:
        """Return whether the daemon takes crashes."""
        return self.ready

    def is_alive(self) -> bool:
        """Return whether the loop turns."""
        return self._loop.idle_ns < ALIVE_NS
