"""Reading one record for `crashctl info` without loading the record's class.

A record that this version wrote whole is its own JSON form. Any other one, older, damaged or
foreign, is left to model.from_json, which completes it or says what is wrong.
"""

from __future__ import annotations

import json
import os
import re

from crashd.base.files import DIRECTORY, open_regular, read_all
from crashd.domain.crash.keys import CORE_NAME_TEXT, ID_TEXT, RECORD_KEYS, SCHEMA
from crashd.errors import CrashdError

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from typing import Any

RECORD = "crash.json"
PLAIN_MAX = 4 << 20
"""Larger records than this version writes take the long way, too."""


def read_plain(crashes: str | os.PathLike[str], crash_id: str) -> dict[str, Any] | None:
    """Return a record as it is on disk; None if it must be parsed by model.from_json."""
    if not re.fullmatch(ID_TEXT, crash_id):
        return None
    try:
        directory = os.open(os.path.join(crashes, crash_id), DIRECTORY)
        try:
            fd = open_regular(RECORD, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            raw = read_all(fd, PLAIN_MAX)
        finally:
            os.close(fd)
        document = json.loads(raw)
    except (OSError, CrashdError, ValueError, RecursionError):
        return None
    return document if _is_plain(document, crash_id) else None


def _is_plain(document: object, crash_id: str) -> bool:
    if not isinstance(document, dict) or not document.keys() >= RECORD_KEYS:
        return False
    core = document["core"]
    if document["schema"] != SCHEMA or document["id"] != crash_id or not isinstance(core, dict):
        return False
    name = core.get("path")
    return name is None or (isinstance(name, str) and bool(re.fullmatch(CORE_NAME_TEXT, name)))
