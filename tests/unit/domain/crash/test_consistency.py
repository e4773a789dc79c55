"""Records that contradict themselves, and those that do not."""

from dataclasses import replace
from typing import Any

import pytest

from crashd.domain.crash.consistency import contradictions
from crashd.domain.crash.model import Capture, Core, Crash, Kind, State
from tests.builders.crashes import build_crash

WHOLE = Core("core.zst", 10_000, 1_000, 5_000, 10_000, True)
CUT = replace(WHOLE, size_bytes=6_000, complete=False)
DUMP = Core(size_bytes=100, stored_bytes=100, resident_bytes=100, complete=True)
DELETED = Capture(reason="deleted by retention: max_use")


def kernel(**more: Any) -> Crash:
    return build_crash(kind=Kind.KERNEL, **more)


@pytest.mark.parametrize(
    "crash",
    [
        build_crash(core=WHOLE),
        build_crash(core=replace(WHOLE, expected_bytes=None)),
        build_crash(core=CUT, state=State.TRUNCATED),
        build_crash(core=Core(), state=State.METADATA_ONLY),
        build_crash(core=Core(), state=State.LOST),
        build_crash(core=Core(size_bytes=10_000), state=State.EVICTED, capture=DELETED),
        build_crash(core=Core(), state=State.EVICTED, evicted={"reason": "max_use"}),
        build_crash(core=CUT, state=State.CAPTURING),
        kernel(core=DUMP),
        kernel(core=replace(DUMP, complete=False), state=State.INCOMPLETE),
        kernel(core=Core(), state=State.METADATA_ONLY),
        kernel(core=Core(size_bytes=100), state=State.EVICTED, capture=DELETED),
        kernel(core=Core(size_bytes=100), state=State.MISSING),
    ],
)
def test_contradictions_of_sound_records_are_none(crash: Crash) -> None:
    assert list(contradictions(crash)) == []


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        (build_crash(core=replace(CUT, complete=True), state=State.TRUNCATED), "complete"),
        (build_crash(core=replace(WHOLE, complete=False)), "complete, its core not complete"),
        (build_crash(core=replace(WHOLE, size_bytes=9_000)), "9000 of 10000"),
        (build_crash(core=replace(WHOLE, resident_bytes=10_001)), "resident"),
        (build_crash(core=replace(WHOLE, path=None)), "has no core"),
        (build_crash(core=replace(CUT, stored_bytes=0), state=State.TRUNCATED), "has no core"),
        (build_crash(core=CUT, state=State.METADATA_ONLY), "but has a core"),
        (build_crash(core=Core(stored_bytes=1), state=State.LOST), "but has a core"),
        (build_crash(core=Core(), state=State.EVICTED), "gives no reason"),
        (build_crash(core=WHOLE, evicted={"reason": "max_use"}), "but gives a reason"),
        (build_crash(core=Core(), state=State.MISSING), "a process cannot be missing"),
        (build_crash(core=WHOLE, boot_id="f" * 32), "does not contain its boot"),
        (kernel(core=replace(DUMP, path="core.zst")), "names a core"),
        (kernel(core=DUMP, state=State.INCOMPLETE), "incomplete, its core complete"),
        (
            kernel(core=replace(DUMP, complete=False), state=State.MISSING),
            "missing, but has 100 bytes",
        ),
        (kernel(core=Core(), state=State.LOST), "a kernel cannot be lost"),
    ],
)
def test_contradictions_name_what_cannot_be(crash: Crash, said: str) -> None:
    found = list(contradictions(crash))
    assert len(found) == 1
    assert said in found[0]
