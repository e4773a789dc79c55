"""The limit of bandwidth, for everything that is sent."""

import threading
import time
from collections.abc import Callable

BURST_SECONDS = 0.5


class Pace:
    """Lets so many bytes a second pass; any thread may ask."""

    def __init__(
        self,
        bytes_per_second: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_s = 0.0
        """When all that was let pass has passed."""

    def wait(self, size: int) -> None:
        """Wait until this many bytes may pass."""
        if self._rate is None or size <= 0:
            return
        with self._lock:
            now = self._clock()
            begin = max(self._free_s, now - BURST_SECONDS)
            self._free_s = begin + size / self._rate
        if begin > now:
            self._sleep(begin - now)
