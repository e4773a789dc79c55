"""Finds contradictions within a finished record, for `verify --strict`. Pure."""

from collections.abc import Iterator

from crashd.domain.crash.model import Crash, Kind, State


def contradictions(crash: Crash) -> Iterator[str]:
    """Yield the contradictions in a record; none if it is still being written."""
    if not crash.state.is_final:
        return
    if crash.kind not in crash.state.kinds:
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
    if crash.state.is_gone and crash.core.stored_bytes:
        yield f"it is {crash.state}, but has {crash.core.stored_bytes} bytes on disk"


def _of_process(crash: Crash) -> Iterator[str]:
    core = crash.core
    if not crash.state.has_core:
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
