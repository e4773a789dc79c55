"""A progress bar for long work, shown only on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from crashd.cli.context import Context
from crashd.domain.units import format_duration, format_size

WIDTH = 30
AFTER_SECONDS = 0.5
"""Work that ends sooner shows no bar."""
EVERY_SECONDS = 0.1
_CLEAR = "\r\x1b[K"


class Progress:
    """Callable that gets the amount done and the total; a total of 0 means unknown."""

    def __init__(self, label: str, *, shown: bool, sizes: bool) -> None:
        self._label = label
        self._shown = shown
        self._sizes = sizes
        self._begun_s = time.monotonic()
        self._drawn_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Draw the bar, unless it was drawn a moment ago; remove it once all is done."""
        if 0 < total <= done:
            self.end()
            return
        now_s = time.monotonic()
        waited = now_s - self._begun_s >= AFTER_SECONDS
        if not self._shown or not waited or now_s - self._drawn_s < EVERY_SECONDS:
            return
        self._drawn_s = now_s
        text = bar(self._label, done, total, now_s - self._begun_s, sizes=self._sizes)
        print(f"{_CLEAR}{text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the bar."""
        if self._drawn_s:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
        self._drawn_s = 0.0


def bar(label: str, done: int, total: int, seconds: float, *, sizes: bool) -> str:
    """Format the bar; with `sizes` the numbers are bytes, otherwise counts."""
    shown, whole = (format_size(done), format_size(total)) if sizes else (str(done), str(total))
    if total <= 0:
        return f"{label}: {shown}"
    share = min(1.0, done / total)
    full = round(share * WIDTH)
    left = ""
    if 0 < share < 1 and seconds >= 1:
        left = f", {format_duration(round(seconds / share * (1 - share)) * 10**9)} left"
    return f"{label}: [{'#' * full}{'.' * (WIDTH - full)}] {share:4.0%} {shown} of {whole}{left}"


@contextmanager
def progress(context: Context, label: str, *, sizes: bool = False) -> Iterator[Progress]:
    """Show progress on stderr, if that is a terminal and --quiet is not given."""
    found = Progress(label, shown=sys.stderr.isatty() and not context.quiet, sizes=sizes)
    try:
        yield found
    finally:
        found.end()
