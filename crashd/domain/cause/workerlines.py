"""What an analysis worker says besides its facts. Pure.

It is apart from the facts' own classes because the worker starts for each crash, and needs none of
them.
"""

UNSEALED_STATUS = 69
"""Exit status of a worker that could not be confined and therefore did nothing."""
OTHER_MARK = b'{"other":%d}\n'
"""The worker's line before the result of another core of its request."""
PEAK_PREFIX = b"peak KiB: "
"""Begins the last line of the worker's stderr, which reports its peak resident memory."""
