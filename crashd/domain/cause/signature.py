"""Title and signature of a crash: the same for the same bug on any host, in any run, and as far as
possible after a rebuild. Pure.

A signature is `p8-` and 16 hex digits. It covers the program's name, the kind of the cause, and up
to FRAMES functions that matter. It leaves out addresses, pids, thread names, paths, line numbers,
build-ids, the depth of a recursion, and whether a function was inlined. A change in this module
that changes the result changes the number after the `p`, too.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import takewhile

from crashd.domain.cause.analysis import Cause, Facts, Frame
from crashd.domain.cause.faults import FAULT_KINDS
from crashd.domain.cause.helpers import (
    below_failure,
    below_leaf,
    below_static_libc,
    is_emulated,
    is_helper,
    is_inlined_into_library,
)
from crashd.domain.cause.languages import is_library_file, is_of_interpreter
from crashd.domain.cause.names import plain_name
from crashd.domain.signals import signal_name

VERSION = "p8"
FRAMES = 3
NAMELESS_FRAMES = 8
"""Frames that count when the first FRAMES have no names and the process ended itself."""
RECURSION_MIN = 3
"""A function is part of the recursion when it is this many times on the stack that overflowed."""
_TITLE_NAME_MAX = 60
_INLINED_FRAMES = 16
_ENTRY_FRAMES = 12
"""Frames without names in a library before the one by which it was entered, at most."""

_CARGO = re.compile(r"^.*/(registry/src|git/checkouts)/[^/]+/")
"""The directory of a dependency's source depends on who built the program."""
_LOCATION_PARTS, _ABSOLUTE_PARTS = 4, 2
_QUOTED = re.compile(r"'[^']*'|`[^']*'|\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u2018[^\u2019]*\u2019")
_WORD = re.compile(r"[^\W\d_]{2,}[:,.;!?]?")
_NAMELESS = frozenset(
    ("double-free", "heap-corruption", "stack-smashing", "buffer-overflow", "abort-message",
     "go-fatal")
)  # fmt: skip
"""Kinds whose message says all that a library's function could."""
_GOS_RUNTIME = "runtime."
_V8 = re.compile(r"v8::|node::|Builtins_")
_BAD_CALLS = frozenset({"null-call", "wild-call", "execute-data"})


def significant(facts: Facts, cause: Cause) -> list[Frame]:
    """Return the crashed thread's frames without helpers; the list may be empty."""
    frames = facts.blamed if cause.kind in FAULT_KINDS else below_failure(facts.blamed)
    inner = below_static_libc(facts, below_leaf(frames))
    native = [frame for frame in inner if not is_helper(frame)]
    if script := facts.crashed_interpreted:
        # The bug to fix is in the script, not in the interpreter or the C library that it called;
        # but an extension module with names has functions of its own.
        kind = script[0].kind
        own = [f for f in script if not is_library_file(kind, f.file or "")] or list(script)
        return [*takewhile(partial(_is_extension, kind), native), *own]
    return native


def _is_extension(kind: str, frame: Frame) -> bool:
    """Return whether a frame is in an extension module of a language, and has a name."""
    if frame.function is None or frame.module is None:
        return False
    return not is_of_interpreter(kind, frame.function, frame.module)


def notable(facts: Facts, cause: Cause) -> list[Frame]:
    """Return the frames to name first: the significant ones, or all frames if none is significant.

    A language's runtime that gave up is never named, because the bug is not there; nor is QEMU,
    which ends as the program does that it emulates.
    """
    if is_emulated(facts):
        return []
    frames = significant(facts, cause)
    if cause.kind not in FAULT_KINDS and (outer := _outside_v8(below_failure(facts.blamed))):
        return [frame for frame in frames if frame not in outer]
    if not frames and cause.kind not in _NAMELESS and not _is_in_gos_runtime(facts.blamed):
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


def _is_in_gos_runtime(frames: Sequence[Frame]) -> bool:
    return any((frame.function or "").startswith(_GOS_RUNTIME) for frame in frames)


def _outside_v8(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames from V8's or Node's outermost on: they only run a script, whose functions
    have no frames.
    """
    for index in range(len(frames) - 1, -1, -1):
        if _V8.match(frames[index].function or ""):
            return frames[index:]
    return ()


def frame_key(frame: Frame) -> str:
    """Return the name of a frame for the signature."""
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
    keys = [key for frame in frames if (key := frame_key(frame)) != "?"] or [cause.short]
    if panicked := panic_place(facts, cause):
        keys = [panicked]
    if cause.kind == "stack-overflow":
        counts = Counter(keys)
        repeated = sorted(key for key, count in counts.items() if count >= RECURSION_MIN)
        # the point of the cycle at which the stack runs out differs from run to run
        keys = repeated or keys
    unique = list(dict.fromkeys(keys))[: _depth(frames, cause)]
    if cause.kind in ("assertion", "cxx-exception"):
        unique.append(cause.short)  # one function may check, or throw, several things
    if cause.kind == "abort-message":
        unique.append(_template(cause.short))
    group = _GROUPS.get(cause.kind, cause.kind)
    return f"{VERSION}-{_digest([program, group, *unique])}"


def _template(message: str) -> str:
    """Return the words of a message without what differs between runs: numbers, names, paths."""
    words = _QUOTED.sub("", message).split()
    return " ".join(word for word in words if _WORD.fullmatch(word))


def _depth(frames: Sequence[Frame], cause: Cause) -> int:
    """Return how many functions count.

    In a static program without names the innermost frames belong to abort(), whatever called it.
    More frames are needed there to distinguish bugs.
    """
    first = frames[:FRAMES]
    nameless = bool(first) and all(frame.function is None for frame in first)
    return NAMELESS_FRAMES if nameless and cause.kind not in FAULT_KINDS else FRAMES


_GROUPS = dict.fromkeys(
    ("null-pointer", "wild-pointer", "freed-memory", "poisoned-memory", "overwritten-pointer",
     "non-canonical", "invalid-free"),
    "bad-pointer",
)  # fmt: skip
"""The same bug appears as any of these kinds, depending on what the memory contains."""


def _digest(parts: Iterable[str]) -> str:
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "backslashreplace")
        state.update(len(raw).to_bytes(4, "little") + raw)
    return state.hexdigest()[:16]


def build_title(comm: str, signal: int | None, facts: Facts, cause: Cause) -> str:
    """Build the one-line title of a crash."""
    name = "crash" if signal is None else signal_name(signal)
    where = panic_place(facts, cause) or place(notable(facts, cause))
    return f"{name} in {comm or '?'}" + (f", {where}" if where else "") + f": {cause.short}"


def panic_place(facts: Facts, cause: Cause) -> str | None:
    """Return file and line of a Rust panic or a fault if no function of the program is known; None
    for any other crash.

    Offsets change with every build, but a panic's Location is part of the program's data. A closure
    of a thread may be inlined into functions of the standard library, with its own line.
    """
    location = facts.messages.get("rust_location")
    if not facts.blamed or any(frame.function for frame in significant(facts, cause)[:FRAMES]):
        return None
    if cause.kind == "rust-panic" and location:
        return _short_place(*location.rsplit(":", 2)[:2])
    own = (frame for frame in facts.blamed[:_INLINED_FRAMES] if is_inlined_into_library(frame))
    found = next(own, None)
    if found is None or found.file is None or cause.kind not in FAULT_KINDS:
        return None
    return _short_place(found.file, str(found.line))


def _short_place(file: str, line: str) -> str:
    file = _CARGO.sub("", file)
    # an absolute path depends on where the program was built
    parts = file.split("/")[-_ABSOLUTE_PARTS if file.startswith("/") else -_LOCATION_PARTS :]
    return f"{'/'.join(parts)}:{line}"


def place(frames: Sequence[Frame]) -> str:
    """Return the name of the function that matters most; empty if there is no name.

    A library without symbols still has the names of what it exports, so an offset in it gives way
    to the function of the same library that was called from outside.
    """
    for frame in _from_entry(frames):
        if frame.kind != "native":
            return f"{frame.function}() of {_basename(frame.file)}"
        if frame.function:
            return f"{plain_name(frame.function)[:_TITLE_NAME_MAX]}()"
        if frame.module and frame.offset is not None:
            return f"{_basename(frame.module)}+{frame.offset:#x}"
    return ""


def entry(frames: Sequence[Frame]) -> Frame | None:
    """Return the frame of the exported function by which a library without symbols was entered, if
    the first frame is a nameless one of that library.
    """
    first = frames[0] if frames else None
    if first is None or first.function is not None or first.offset is None:
        return None
    if ".so" not in _basename(first.module):
        return None
    for frame in frames[1:_ENTRY_FRAMES]:
        if frame.module != first.module:
            return None
        if frame.function is not None:
            return frame
    return None


def _from_entry(frames: Sequence[Frame]) -> Sequence[Frame]:
    found = entry(frames)
    return frames if found is None else frames[list(frames).index(found) :]
