"""What users of systemctl, journalctl and the shell type, and what it is called here.

Only mistakes load this.
"""

from collections.abc import Mapping
from typing import Final

_CUT = "in a pipe nothing is cut: crashctl list | cat"
_JSON = "--json prints JSON, -F one field"
_UNIT = "a unit is a MATCH: crashctl list nginx.service"
_BOOT = "crashctl list boot_id=ID; crashctl -F boot_id shows the ids"
_OTHER = "--root DIR, or -D DIR for a copy of a store; --fleet for other hosts"

OPTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("-u", "--unit", "--user-unit"), _UNIT),
    **dict.fromkeys(("-b", "--boot"), _BOOT),
    **dict.fromkeys(("-f", "--follow"), "crashctl follow prints crashes as they happen"),
    **dict.fromkeys(("-l", "--full", "--no-full"), _CUT),
    **dict.fromkeys(("-o", "--output"), _JSON),
    **dict.fromkeys(("-g", "--grep"), "MATCH takes patterns: crashctl list 'title=*words*'"),
    **dict.fromkeys(("-M", "--machine", "-H", "--image"), _OTHER),
    "--utc": "TZ=UTC crashctl list",
}
"""What to use in place of an option that a verb does not have."""
VERBS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("ls", "log", "logs"), "list"),
    **dict.fromkeys(("show", "cat", "view", "backtrace"), "info"),
    **dict.fromkeys(("remove", "del"), "delete"),
    **dict.fromkeys(("get", "export", "extract"), "dump"),
    **dict.fromkeys(("summary", "count"), "stats"),
    **dict.fromkeys(("clean", "prune"), "vacuum"),
    **dict.fromkeys(("tail", "watch"), "follow"),
    **dict.fromkeys(("check", "diagnose"), "doctor"),
    "lldb": "debug",
}
"""The verb that is meant by another word."""
