"""Title and signature of a crash: the same for the same bug on any host, in any run, and as far as
can be after a rebuild. Pure.

A signature is `p1-` and 16 hex digits. In it go: the program's name, the kind of the cause, and up
to FRAMES functions that matter. Not in it: addresses, pids, thread names, paths, line numbers,
build-ids, how deep a recursion was, and whether a function was inlined. The number changes with
whatever here changes the result.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from crashd.domain.cause.analysis import Cause, Facts, Frame
from crashd.domain.signals import signal_name

VERSION = "p1"
FRAMES = 3
RECURSION_MIN = 3
"""Times that a function is on a stack that overflowed, to be part of the recursion."""
_TITLE_NAME_MAX = 60

# What libraries do on behalf of a program that has crashed, or was about to.
_LIBRARY = re.compile(
    r"/(lib(c|pthread|stdc\+\+|gcc_s|c\+\+|c\+\+abi|unwind|asan|ubsan|tsan|lsan|msan|m|rt|dl|"
    r"jemalloc|tcmalloc|tcmalloc_minimal|mimalloc)|ld-linux[^/]*|ld-musl[^/]*|ld)[-.][^/]*$"
)
_WRAPPERS = re.compile(
    r"""
    _*(abort|raise|gsignal|g_?abort|pthread_kill(_implementation|_internal|@.*)?|kill|tgkill)$
    |_*libc_(message|fatal|start_main|start_call_main|assert_fail)|malloc_printerr
    |_*(fortify_fail|chk_fail|stack_chk_fail(_local)?|assert(_perror)?_fail(_base)?)
    |_*(malloc|calloc|realloc|free|cfree|memalign|posix_memalign|aligned_alloc)$|_int_(free|malloc)
    |operator\ (new|delete)
    |std::|__gnu_cxx::|__cxxabiv1::|__cxa_|_Unwind_|__gxx_personality|_*terminate$
    |core::|alloc::|panic_(abort|unwind)::|__rustc::|rust_|__rust_
    |<(core|alloc|std)::|<?.*\ as\ (core|alloc|std)::
    |runtime\.(?!main\.)|sync/atomic\.|internal/|gosave|rt0_go
    |_*restore_rt|_*kernel_(rt_)?sigreturn|_start$|_*clone3?$|start_thread|_dl_|call_init
    |_*(asan|ubsan|tsan|lsan|msan|sanitizer|interceptor)_|__sanitizer|__interceptor
    |g_(log|logv|log_.*|assertion_message.*|error|return_if_fail_warning)$
    """,
    re.VERBOSE,
)
_STD_FILE = re.compile(r"/(include/c\+\+|rustc/[0-9a-f]{40}|go[-0-9.]*/src/runtime)/")
_PYTHON_LIBRARY = re.compile(r"/lib(64)?/python3\.\d+/(?!(site|dist)-packages/)|^<frozen ")
_SUFFIX = re.compile(r"(\.(constprop|isra|part|cold|lto_priv|abi0|abiinternal|llvm|\d+))+(\.\d+)*$")
_BRACKET_SUFFIX = re.compile(r"( \[[^\]]*\])+$")
_BAD_CALLS = frozenset({"null-call", "wild-call", "execute-data"})
_NUMBERS = re.compile(r"#\d+")


def plain_name(function: str) -> str:
    """Bring a function's name to what stays the same: no parameters, no template arguments, no
    mark of the compiler's.

    `app::Store<int>::at(unsigned long) const [.cold]` becomes `app::Store::at`.
    """
    name = _BRACKET_SUFFIX.sub("", function)
    name = re.sub(r"( const| volatile| &&?| noexcept)+$", "", name)
    if name.endswith(")") and not name.endswith("operator()"):
        name = _without_last_group(name)
    name = _SUFFIX.sub("", _without_angles(name))
    if "operator" not in name and "{" not in name:
        name = _without_return_type(name)
    return _NUMBERS.sub("", name) or function


def _without_last_group(name: str) -> str:
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            return name[:at] or name
    return name


def _without_return_type(name: str) -> str:
    """Leave out the return type, which stands before the name of a template's instance."""
    depth = start = 0
    for at, letter in enumerate(name):
        depth += (letter in "(<") - (letter in ")>")
        if letter == " " and depth == 0:
            start = at + 1
    return name[start:] or name


def _without_angles(name: str) -> str:
    """Leave out template arguments; `operator<` and a name that begins by one stay."""
    if "operator" in name or name.startswith("<"):
        return name
    out: list[str] = []
    depth = 0
    for letter in name:
        depth += letter == "<"
        if not depth:
            out.append(letter)
        depth -= letter == ">" and depth > 0
    return "".join(out).replace("::::", "::").removesuffix("::")


def significant(facts: Facts) -> list[Frame]:
    """Give the crashed thread's frames without what libraries and runtimes put around the bug;
    there may be none.
    """
    if script := facts.crashed_interpreted:
        # Whoever called into the library that crashed is who can mend it.
        return [f for f in script if not _PYTHON_LIBRARY.search(f.file or "")] or list(script)
    return [frame for frame in facts.blamed if not _is_wrapper(frame)]


def notable(facts: Facts, cause: Cause) -> list[Frame]:
    """Give the frames to name first: the significant ones, or where there are none all of them;
    but a language's runtime that gave up is no place of a bug.
    """
    frames = significant(facts) or ([] if cause.kind == "go-fatal" else list(facts.blamed))
    if cause.kind in _BAD_CALLS and len(frames) > 1 and frames[0] is facts.blamed[0]:
        return frames[1:]  # who called it has the bug
    return frames


def in_library_source(frame: Frame) -> bool:
    """Tell whether a frame's line is one of a language's own library: where that was inlined
    without a word in the debug information, the line is not the function's.
    """
    return bool(frame.file and _STD_FILE.search(frame.file))


def _is_wrapper(frame: Frame) -> bool:
    if frame.module is None and frame.function is None:
        return frame.pc != 0  # a call through NULL is the bug itself, and has no name
    if _LIBRARY.search(frame.module or ""):
        return True
    if frame.inline and in_library_source(frame):
        return True
    return frame.function is not None and bool(_WRAPPERS.match(frame.function))


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
    keys = [frame_key(frame) for frame in notable(facts, cause)] or [cause.short]
    if cause.kind == "stack-overflow":
        counts = Counter(keys)
        repeated = sorted(key for key, count in counts.items() if count >= RECURSION_MIN)
        # where in the circle the end of the stack is met differs from run to run
        keys = repeated or keys
    unique = list(dict.fromkeys(keys))
    group = _GROUPS.get(cause.kind, cause.kind)
    return f"{VERSION}-{_digest([program, group, *unique[: max(FRAMES, 0)]])}"


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
