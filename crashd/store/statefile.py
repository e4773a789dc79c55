"""Small state files in the state directory: replaced whole, and ignored when damaged."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from crashd.base.files import read_file, replace_file
from crashd.domain.crash.model import encode

STATE_MAX = 16 << 20
"""At most this many bytes of a file are read."""


def read_state(path: Path) -> Any:
    """Read a file's JSON; None if it is missing or damaged."""
    try:
        return json.loads(read_file(path, STATE_MAX))
    except (OSError, ValueError, RecursionError):
        return None


def write_state(path: Path, document: Any) -> None:
    """Replace a file with `document` as JSON. Not synced: the newest state is not worth a wait.

    Raises:
        OSError: the disk refuses it, or it is too large for `read_state`.

    """
    raw = encode(document)
    if len(raw) > STATE_MAX:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    replace_file(path, raw, staged=path.with_name(path.name + ".new"))
