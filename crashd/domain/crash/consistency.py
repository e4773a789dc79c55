"""Finds contradictions within a finished record, for `verify --strict`. Pure."""

from collections.abc import Iterator
from typing import Final

from crashd.domain.crash.model import Crash, Kind, State

_STATES: Final = {
    Kind.PROCESS: frozenset(State) - {State.INCOMPLETE, State.MISSING},
    Kind.KERNEL: frozenset(State) - {State.TRUNCATED, State.LOST},
}
_CORELESS: Final = frozenset({State.METADATA_ONLY, State.LOST, State.EVICTED})
"""States of a process crash without a core."""
_GONE: Final = frozenset({State.EVICTED, State.MISSING})


def contradictions(crash: Crash) -> Iterator[str]:
    """Yield the contradictions in a record; none if it is still being written."""
    if crash.state is State.CAPTURING:
        return
    if crash.state not in _STATES[crash.kind]:
        yield f"a {crash.kind} cannot be {crash.state}"
        return
    if crash.id.split("-")[1] != crash.boot_id[:8]:
        yield f"its id does not contain its boot {crash.boot_id[:8]}"
    if crash.state is State.EVICTED and not (crash.evicted or crash.capture.reason):
        yield "it was deleted, but gives no reason"
    if crash.state is not State.EVICTED and crash.evicted:
        yield f"it is {crash.state}, but gives a reason for its deletion"
    if crash.core.complete != (crash.state is State.COMPLETE):
        yield f"it is {crash.state}, its core {'' if crash.core.complete else 'not '}complete"
    if crash.kind is Kind.KERNEL:
        yield from _of_kernel(crash)
    else:
        yield from _of_process(crash)


def _of_kernel(crash: Crash) -> Iterator[str]:
    if crash.core.path is not None:
        yield "it names a core in the store, where kernel dumps never are"
    if crash.state in _GONE and crash.core.stored_bytes:
        yield f"it is {crash.state}, but has {crash.core.stored_bytes} bytes on disk"


def _of_process(crash: Crash) -> Iterator[str]:
    core = crash.core
    if crash.state in _CORELESS:
        if core.path is not None or core.stored_bytes:
            yield f"it is {crash.state}, but has a core of {core.stored_bytes} bytes"
        return
    if core.path is None or not core.stored_bytes:
        yield f"it is {crash.state}, but has no core"
    if core.resident_bytes > core.size_bytes:
        yield f"its core has {core.resident_bytes} resident of {core.size_bytes} bytes"
    short = core.expected_bytes is not None and core.size_bytes < core.expected_bytes
    if crash.state is State.COMPLETE and short:
        yield f"it is complete, but has only {core.size_bytes} of {core.expected_bytes} bytes"
