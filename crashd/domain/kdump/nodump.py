"""Files with the name of a kernel dump that are not dumps."""

import re

_LOG_LINE = re.compile(rb"(?:^|\n)(?:<\d{1,3}>)?\[ *\d{1,10}\.\d{6}\]")
_TEXT = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])
_TEXT_SAMPLE = 64 * 1024


def describe(data: bytes, size: int) -> str:
    """Describe a file that is not a dump."""
    sample = data[:_TEXT_SAMPLE]
    if not sample.strip(b"\0"):
        return f"{size} bytes, zeros at the start"
    # Many logs end in zeros, where the file system had not yet written the data.
    if not sample.rstrip(b"\0").translate(None, _TEXT):
        if _LOG_LINE.search(sample) or sample.startswith(b"Linux version "):
            return "a copy of the log, no memory image (--dump-dmesg)"
        return f"{size} bytes of text, no memory image"
    return f"{size} bytes of an unknown format, no memory image"
