"""Title and signature of a crash: the same for the same bug on any host, in any run, and as far as
can be after a rebuild. Pure.

A signature is `p2-` and 16 hex digits. In it go: the program's name, the kind of the cause, and up
to FRAMES functions that matter. Not in it: addresses, pids, thread names, paths, line numbers,
build-ids, how deep a recursion was, and whether a function was inlined. The number changes with
whatever here changes the result.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from crashd.domain.cause.analysis import Cause, Facts, Frame
from crashd.domain.cause.faults import FAULT_KINDS
from crashd.domain.cause.helpers import below_failure, is_helper
from crashd.domain.cause.names import plain_name
from crashd.domain.signals import signal_name

VERSION = "p2"
FRAMES = 3
NAMELESS_FRAMES = 8
"""Where none of the first has a name, and the process ended itself."""
RECURSION_MIN = 3
"""Times that a function is on a stack that overflowed, to be part of the recursion."""
_TITLE_NAME_MAX = 60

_PYTHON_LIBRARY = re.compile(r"/lib(64)?/python3\.\d+/(?!(site|dist)-packages/)|^<frozen ")
_BRACKET_BAD_CALLS = frozenset({"null-call", "wild-call", "execute-data"})


_BAD_CALLS = frozenset({"null-call", "wild-call", "execute-data"})


def significant(facts: Facts, cause: Cause) -> list[Frame]:
    """Return the crashed thread's frames without those of helpers; there may be none."""
    if script := facts.crashed_interpreted:
        # What called into the library that crashed is what can be mended.
        return [f for f in script if not _PYTHON_LIBRARY.search(f.file or "")] or list(script)
    frames = facts.blamed if cause.kind in FAULT_KINDS else below_failure(facts.blamed)
    return [frame for frame in frames if not is_helper(frame)]


def notable(facts: Facts, cause: Cause) -> list[Frame]:
    """Return the frames to name first: the significant ones, or all of them where there are none;
    but a language's runtime that gave up is not the place of a bug.
    """
    frames = significant(facts, cause)
    if not frames and cause.kind != "go-fatal":
        frames = list(below_failure(facts.blamed) or facts.blamed)
    if cause.kind in _BAD_CALLS and len(frames) > 1 and frames[0] is facts.blamed[0]:
        return frames[1:]  # its caller has the bug
    if cause.kind == "stack-overflow":
        # The leaf is whatever the recursion happened to call where the stack ended.
        keys = [frame_key(frame) for frame in frames]
        counts = Counter(keys)
        repeated = [f for f, key in zip(frames, keys, strict=True) if counts[key] >= RECURSION_MIN]
        return repeated or frames
    return frames


def frame_key(frame: Frame) -> str:
    """Name a frame for the signature."""
    if frame.kind != "native":
        return f"{frame.kind}:{_basename(frame.file)}:{frame.function}"
    if frame.function:
        return plain_name(frame.function)
    if frame.module and frame.offset is not None:
        return f"{_basename(frame.module)}+{frame.offset:#x}"
    return "NULL" if frame.pc == 0 else "?"


def _basename(path: str | None) -> str:
    return (path or "?").rpartition("/")[2]


def build_signature(program: str, facts: Facts, cause: Cause) -> str:
    """Build the signature of a crash of `program`, the executable's name without directories."""
    frames = notable(facts, cause)
    keys = [frame_key(frame) for frame in frames] or [cause.short]
    if cause.kind == "stack-overflow":
        counts = Counter(keys)
        repeated = sorted(key for key, count in counts.items() if count >= RECURSION_MIN)
        # where in the circle the end of the stack is met differs from run to run
        keys = repeated or keys
    unique = list(dict.fromkeys(keys))
    group = _GROUPS.get(cause.kind, cause.kind)
    return f"{VERSION}-{_digest([program, group, *unique[: _depth(frames, cause)]])}"


def _depth(frames: Sequence[Frame], cause: Cause) -> int:
    """Return how many functions count.

    In a static program without names the innermost frames are those of abort() for whatever called
    it: then more of them tell bugs apart.
    """
    first = frames[:FRAMES]
    nameless = bool(first) and all(frame.function is None for frame in first)
    return NAMELESS_FRAMES if nameless and cause.kind not in FAULT_KINDS else FRAMES


_GROUPS = dict.fromkeys(
    ("null-pointer", "wild-pointer", "freed-memory", "poisoned-memory", "overwritten-pointer",
     "non-canonical"),
    "bad-pointer",
)  # fmt: skip
"""One bug shows itself as any of them, as the memory happens to be."""


def _digest(parts: Iterable[str]) -> str:
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "backslashreplace")
        state.update(len(raw).to_bytes(4, "little") + raw)
    return state.hexdigest()[:16]


def build_title(comm: str, signal: int | None, facts: Facts, cause: Cause) -> str:
    """Build the one line that stands for a crash."""
    name = "crash" if signal is None else signal_name(signal)
    where = place(notable(facts, cause))
    return f"{name} in {comm or '?'}" + (f", {where}" if where else "") + f": {cause.short}"


def place(frames: Sequence[Frame]) -> str:
    """Name the function that matters most; empty where there is none."""
    for frame in frames:
        if frame.kind != "native":
            return f"{frame.function}() of {_basename(frame.file)}"
        if frame.function:
            return f"{plain_name(frame.function)[:_TITLE_NAME_MAX]}()"
        if frame.module and frame.offset is not None:
            return f"{_basename(frame.module)}+{frame.offset:#x}"
    return ""
