"""Whether the daemon is alive, and whether it takes crashes: what probes are answered."""

from crashd.daemon.loop import Loop

ALIVE_NS = 120 * 10**9
"""A loop that has not turned for so long is not alive (it turns at least every 30 s)."""


class Health:
    """For any thread; the daemon says when it is ready."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.ready = False

    def is_ready(self) -> bool:
        """Return whether crashes are taken."""
        return self.ready

    def is_alive(self) -> bool:
        """Return whether the loop turns."""
        return self._loop.idle_ns < ALIVE_NS
