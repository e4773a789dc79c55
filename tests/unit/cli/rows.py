"""Crash records as crashctl gets them, for the tests of this directory."""

from dataclasses import replace
from typing import Any

from crashd.domain.crash.model import (
    LIST_KEYS,
    Capture,
    Core,
    Crash,
    Engine,
    Identity,
    Kind,
    State,
    build_id_text,
    to_json,
)

TIME_NS = 1_795_410_129_123_456_789  # 2026-11-23 05:02:09 UTC

NGINX = Crash(
    id=build_id_text(TIME_NS, "5f0c77aa" + "0" * 24, 1234, 987654321),
    kind=Kind.PROCESS,
    state=State.COMPLETE,
    time_ns=TIME_NS,
    boot_id="5f0c77aa" + "0" * 24,
    hostname=b"web1",
    pid=1234,
    tid=1235,
    ns_pid=7,
    uid=33,
    gid=33,
    dumpable=1,
    owner_uid=33,
    signal=11,
    si_code=1,
    fault_address=0,
    comm=b"nginx",
    thread_comm=b"worker",
    exe=b"/usr/sbin/nginx",
    argv=(b"nginx", b"-g", b"daemon off;"),
    cwd=b"/",
    root=b"/",
    unit="nginx.service",
    slice="system.slice",
    capture=Capture(engine=Engine.STREAM, identity=Identity.KERNEL, hold_ns=12_345_678),
    core=Core("core.zst", 73_400_320, 302_357, 524_288, 73_400_320, True),
    title="SIGSEGV in nginx: NULL pointer dereference at 0x0 (address not mapped)",
    explanation="NULL pointer dereference at 0x0 (address not mapped)",
)
HOSTILE = b"\x1b[2J\nev\xffil\xc2\x9b1m\xe2\x80\xaeon\r"
"""Escape, newline, not UTF-8, CSI as C1, right-to-left override, carriage return."""


def doc_of(crash: Crash = NGINX, **changes: Any) -> dict[str, Any]:
    """Build what `info` gets."""
    return {**to_json(replace(crash, **changes)), "count_of_signature": None}


def row_of(crash: Crash = NGINX, **changes: Any) -> dict[str, Any]:
    """Build what `list` gets."""
    document = doc_of(crash, **changes)
    return {key: document[key] for key in LIST_KEYS}
