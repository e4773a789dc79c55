"""The verbs of crashctl, and which function carries each out.

Apart from arguments.py, because a call that quick.py understands needs no parser.
"""

from __future__ import annotations

from crashd.records import NamedTuple

DEFAULT_VERB = "list"
ALIASES = {"gdb": "debug", "bt": "info", "rm": "delete"}
"""Names that users of coredumpctl, gdb and the shell type."""


class Verb(NamedTuple):
    """One verb: its name, what it does, and the function that does it."""

    name: str
    summary: str
    module: str
    function: str
    match: str | None
    """How the usage line shows MATCH; None if the verb takes no MATCH."""
    needs_match: bool = False
    pages: bool = False
    """Whether long output goes to a pager on a terminal."""


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "list",
            "list crashes, newest last",
            "show.listing",
            "list_crashes",
            "[MATCH...]",
            pages=True,
        ),
        Verb(
            "info",
            "show everything known about a crash",
            "show.listing",
            "show",
            "[MATCH...]",
            pages=True,
        ),
        Verb(
            "dump",
            "write the core of a crash to a file or a pipe",
            "open.dump",
            "dump",
            "[MATCH...]",
        ),
        Verb("debug", "open a crash in a debugger", "open.debug", "debug", "[MATCH...]"),
        Verb(
            "bundle",
            "save a crash with everything needed to debug it elsewhere",
            "open.bundle",
            "bundle",
            "MATCH...",
            True,
        ),
        Verb(
            "top",
            "list signatures, most frequent first",
            "show.top",
            "top",
            "[MATCH...]",
            pages=True,
        ),
        Verb("analyze", "analyse a crash again", "show.top", "analyze", "MATCH...", True),
        Verb(
            "delete", "delete crashes and their cores", "manage.change", "delete", "MATCH...", True
        ),
        Verb("pin", "protect crashes from deletion", "manage.change", "pin", "MATCH...", True),
        Verb(
            "unpin",
            "allow pinned crashes to be deleted again",
            "manage.change",
            "unpin",
            "MATCH...",
            True,
        ),
        Verb(
            "vacuum",
            "delete what exceeds the retention limits now",
            "manage.vacuum",
            "vacuum",
            None,
        ),
        Verb("status", "show the daemon's status", "manage.status", "status", None),
        Verb("verify", "check the store against its index", "manage.verify", "verify", None),
        Verb("reindex", "rebuild the index from the store", "manage.change", "reindex", None),
        Verb(
            "install",
            "register crashd as the kernel's crash handler",
            "manage.setup",
            "install",
            None,
        ),
        Verb("uninstall", "restore the previous crash handler", "manage.setup", "uninstall", None),
        Verb(
            "stats",
            "show crash counts over time",
            "show.stats",
            "stats",
            "[MATCH...]",
            pages=True,
        ),
        Verb(
            "report",
            "write an HTML report of recent crashes",
            "show.report",
            "report",
            "[MATCH...]",
        ),
        Verb("want", "ask hosts of a fleet for cores", "fleet.change", "want", "MATCH...", True),
        Verb("follow", "print crashes as they happen", "show.listing", "follow", None),
        Verb(
            "kdump",
            "check whether a kernel crash would leave a dump",
            "check.kdump",
            "kdump",
            None,
        ),
        Verb(
            "doctor",
            "check that crashes on this host will be caught",
            "check.doctor",
            "doctor",
            None,
        ),
    )
}


FLEET_VERBS: dict[str, tuple[str, str] | None] = {
    **dict.fromkeys(("list", "info", "stats", "report", "dump", "debug", "bundle")),
    "top": ("fleet.top", "top"),
    "follow": ("fleet.follow", "follow"),
    "want": ("fleet.change", "want"),
    "delete": ("fleet.change", "delete"),
}
"""Verbs that take --fleet, and the module and function of those that have another one for it."""
