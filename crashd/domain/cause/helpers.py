"""Which frames of a stack are helpers: the frames that libraries and runtimes put around a bug.
Pure.

Three rules: a frame in a runtime's library is a helper. So is a frame of a function that runtimes
link into the program. If the process ended itself, every frame above the deepest known failure
function (abort, a failed assertion, a panic, terminate) is a helper, whatever its name.
"""

import re
from collections.abc import Sequence

from crashd.domain.cause.analysis import Facts, Frame
from crashd.domain.cause.libcnames import LIBC_FUNCTIONS
from crashd.domain.cause.names import plain_name

_LIBRARY = re.compile(
    r"/(lib(c|pthread|stdc\+\+|gcc_s|c\+\+|c\+\+abi|unwind|asan|ubsan|tsan|lsan|msan|hwasan|m|rt|dl|"
    r"jemalloc|tcmalloc|tcmalloc_minimal|mimalloc|ffi|glib-2|gobject-2|gfortran|gphobos|gdruntime|"
    r"gnat|gnarl|resolv|anl|nss_\w+)|ld-linux[^/]*|ld-musl[^/]*|"
    r"ld)[-.][^/]*$|/gconv/[^/]+\.so$"
)
_WRAPPERS = re.compile(
    r"""
    _*(abort|raise|gsignal|g_?abort|pthread_kill(_implementation|_internal|@.*)?|kill|tgkill)$
    |_*libc_(message|fatal|start_main|start_call_main|assert_fail|free|malloc|realloc|calloc)
    |malloc_printerr|malloc_consolidate$|unlink_chunk$|sysmalloc$
    |tcache_(put|get|init|thread_shutdown|double_free_verify|free_init)$|arena_get\w*$
    |_*(fortify_fail|chk_fail|stack_chk_fail(_local)?|assert(_perror)?_fail(_base)?)
    |_*(malloc|calloc|realloc|free|cfree|memalign|posix_memalign|aligned_alloc)$|_int_(free|malloc)
    |_int_(realloc|memalign)|_mid_memalign|munmap_chunk$|_*(block|restore)_(all|app)?_?sigs$
    # of libc where it is linked in: the variants for processors, checked functions, stdio
    |_*(mem|str|wmem|wcs|raw?mem)[a-z]+_(sse|avx|evex|erms|ssse|unaligned|generic|chk)\w*$
    |__\w+_chk$|_IO_\w+$|_*v?[fsd]?n?w?printf(_internal|_chk)?$|printf_positional$
    |_*(memcpy|memmove|memset|memcmp|memchr|strlen|strnlen|strcpy|strncpy|strcat|strcmp|strncmp)$
    |_*(strchr|strrchr|strdup|strndup|strstr|strtol|strtoul|puts|fputs|fwrite|fclose|fflush)$
    |_*(fread|fgets|qsort(_r)?|bsearch|msort_with_tmp|longjmp(_chk)?|siglongjmp)$
    |operator\ (new|delete)
    |std::|__gnu_cxx::|__cxxabiv1::|__cxa_|_Unwind_|__gxx_personality|_*terminate$
    |core::|alloc::|panic_(abort|unwind)::|__rustc::|rust_|__rust_|__rdl_|__rg_
    |<(core|alloc|std)::|<?.*\ as\ (core|alloc|std)::
    |runtime\.(?!main\.)|runtime/|syscall\.(Raw)?Syscall|sync/atomic\.|sync\.|internal/|gosave|rt0_go
    |_*restore_rt|_*kernel_(rt_)?sigreturn|_start$|_*clone3?$|start_thread|_dl_|call_init
    |_*(asan|ubsan|tsan|lsan|msan|hwasan|sanitizer|interceptor)_|__sanitizer|_*interceptor_
    |__(asan|ubsan|tsan|lsan|msan|hwasan)::
    |g_(log|logv|log_.*|assertion_message.*|error|return_if_fail_warning)$
    |ffi_call(_\w+)?$|v8::|node::|Builtins_|napi_
    |__(add|sub|mul|neg|abs)v[sdt]i[23]$|__clang_call_terminate$|(asan|tsan|msan)_thread_start
    """,
    re.VERBOSE,
)
_FAILURES = re.compile(
    r"""
    _*(abort|assert(_perror)?_fail(_base)?|stack_chk_fail(_local)?|fortify_fail\w*|chk_fail)$
    |_*libc_(message|fatal)\w*$|malloc_printerr$|_*posix_assert\w*$
    |std::(terminate|unexpected|__throw_|__glibcxx_assert_fail|__1::__libcpp_verbose_abort)
    |__gnu_cxx::__verbose_terminate|__cxxabiv1::__(terminate|unexpected)|_*libcpp_verbose_abort
    |_Unwind_Resume|__gxx_personality
    |__cxa_(throw|rethrow|pure_virtual|deleted_virtual|bad_cast|bad_typeid|call_\w+)
    |(.*::)?unhandled_exception(\(\))?$
    |(core|std)::panicking::|rust_(begin_unwind|panic)|std::process::abort|std::alloc::rust_oom
    |alloc::(alloc::handle_alloc_error|raw_vec::(capacity_overflow|handle_error))
    |(internal/)?sync\.(fatal|throw)$|(internal/runtime/)?maps\.fatal$
    |_?g_(assertion_message\w*|error|log|logv|log_\w+|abort|return_if_fail_warning)$
    |QMessageLogger::(fatal|critical)|qt_(message_fatal|assert\w*|check_pointer)|q(Terminate|BadAlloc)
    |node::(Abort|Assert|OnFatalError|OOMErrorHandler|OnOOMError|FatalException|FatalError)
    |(v8::base::|v8::internal::)?(V8_Fatal|FatalOOM|V8_Dcheck)|v8::base::OS::Abort
    |v8::(internal::V8::|Utils::)?(FatalProcessOutOfMemory|Report(Api|OOM)Failure)
    |v8::internal::(Heap|V8)::FatalProcessOutOfMemory|napi_fatal_error
    |__(asan|ubsan|tsan|lsan|msan|hwasan|sanitizer)(::|_)|_*interceptor_
    |VMError::|os::(abort|die)|report_(vm_error|fatal|java_out_of_memory|vm_out_of_memory)
    |__(add|sub|mul|neg|abs)v[sdt]i[23]$|__clang_call_terminate$
    |_?Py_FatalError\w*|fatal_error(_exit)?$|rb_(bug|assert_failure)\w*|zend_mm_(panic|safe_error)
    |_?server(Panic|Assert)\w*|errfinish$|ExceptionalCondition$
    |google::(LogMessage|logging)|absl::(lts_\d+::)?log_internal::|logging::LogMessage
    |llvm::(report_fatal_error|llvm_unreachable_internal)|fancy_abort|internal_error$
    |debug\.panic\w*|builtin\.(default_panic|panic\w*)|std\.debug\.(panic|assert)\w*
    """,
    re.VERBOSE,
)
"""Functions that a program calls when it gives up; they never return to their caller."""
_EMULATOR = re.compile(r"/qemu-(?!system-|img$|nbd$|io$|ga$)[a-z0-9_]+(-static)?$")
_EMULATOR_FRAMES = 6
_SHARED = re.compile(r"\.so([.\d]*)$|^\[|\.cache$")
_PASSES_ON = re.compile(r"_*interceptor_|__[a-z]+san(::|_).*[Tt]hread_?[Ss]tart")
_STD_FILE = re.compile(r"/(usr/include|include/c\+\+|rustc/[0-9a-f]{40})/|^library/[a-z_]+/src/")
_GO_LIBRARY = re.compile(
    r"(archive|bufio|bytes|compress|container|context|crypto|database|debug|embed|encoding|errors|"
    r"expvar|flag|fmt|go|hash|html|image|index|io|iter|log|maps|math|mime|net|os|path|reflect|"
    r"regexp|slices|sort|strconv|strings|sync|syscall|testing|text|time|unicode|unique)[./]"
)
"""Packages of Go's standard library, by the beginning of a function's name."""
_GO_OWN = ("runtime", "internal/", "vendor/", "cmd/", "unsafe")
"""More directories of Go's own source."""
_GO_FILE = re.compile(r"(^(?!/)|/go[^/]*/src/)(?P<package>[a-z0-9/._-]+)/[^/]+\.go$")
_LEAVES = re.compile(
    r"_*(libc_|(tc|je|mi)_)?(malloc|calloc|realloc|c?free|memalign|posix_memalign|aligned_alloc)$"
    r"|operator delete|tc_delete"
)
"""Functions of allocators, which call nothing of the program's."""
_LEAF_FRAMES = 8
_LIBC = re.compile(r"/(libc[-.]|ld-musl|ld-linux|ld[-.]|ld64)[^/]*$")
RESTORER = re.compile(r"_*restore_rt$|_*kernel_(rt_)?sigreturn$")
"""The function to which a signal handler returns."""
_STD_NAME = re.compile(r"std::|<?(core|alloc|std)::|<.* as (core|alloc|std)::")
_TOOLCHAIN_FILE = re.compile(r"/lib(64)?/gcc/[^/]+/[^/]+/include/")


def in_library_source(frame: Frame) -> bool:
    """Return whether a frame's line is in a library's header or a language's own library.

    Code from there may be inlined without a trace in the debug information. The line is then not
    the function's own.
    """
    file = frame.file or ""
    if _STD_FILE.search(file) is not None or _TOOLCHAIN_FILE.search(file) is not None:
        return True
    go = _GO_FILE.search(file)
    return file.startswith("/") and go is not None and _is_gos(go["package"])


def _is_gos(package: str) -> bool:
    """Return whether a directory below Go's `src` is of Go itself, and not of a GOPATH."""
    return _GO_LIBRARY.match(f"{package}/") is not None or package.startswith(_GO_OWN)


def is_inlined_into_library(frame: Frame) -> bool:
    """Return whether a function of a language's library, which was compiled into the program, has a
    line of the program's own there: inlined code that the debug information does not name.
    """
    name = plain_name(frame.function or "")
    if not frame.file or not frame.line or _LIBRARY.search(frame.module or ""):
        return False
    return _STD_NAME.match(name) is not None and not in_library_source(frame)


def in_go_library(frame: Frame) -> bool:
    """Return whether a frame is in Go's standard library, by its name and its line."""
    found = _GO_FILE.search(frame.file or "")
    if found is not None and found["package"].startswith("vendor/"):
        return (frame.function or "").startswith(found["package"].removeprefix("vendor/"))
    if found is None or not _GO_LIBRARY.match(frame.function or ""):
        return False
    return (frame.function or "").startswith((f"{found['package']}.", f"{found['package']}/"))


def is_helper(frame: Frame) -> bool:
    """Return whether a frame belongs to a library or runtime, by its module, line or name."""
    if frame.module is None and frame.function is None:
        return frame.pc != 0  # a call through NULL is the bug itself, and has no name
    if frame.module is None and (frame.function or "").startswith(("__vdso_", "__kernel_")):
        return True
    if _LIBRARY.search(frame.module or ""):
        return True
    if (frame.inline and in_library_source(frame)) or in_go_library(frame):
        return True
    return frame.function is not None and bool(_WRAPPERS.match(plain_name(frame.function)))


def below_leaf(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames from the last of _LEAVES on, among the innermost ones up to the function of
    a signal handler; all frames if there is none. What such a function calls is a library's, also
    in a static program.
    """
    last = 0
    for index, frame in enumerate(frames[:_LEAF_FRAMES]):
        name = plain_name(frame.function or "")
        if RESTORER.match(name):
            break
        if _LEAVES.match(name):
            last = index
    return frames[last:]


def below_static_libc(facts: Facts, frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames below libc's in a program that libc is linked into: below the last of its
    functions among the innermost frames, whatever that calls; all frames of other programs.

    A function of the program may have the name of one of libc's, but then it usually has a line.
    """
    if not facts.modules or any(_LIBC.search(module.name) for module in facts.modules):
        return frames
    last = 0
    for index, frame in enumerate(frames[:_LEAF_FRAMES]):
        name = plain_name(frame.function or "")
        if RESTORER.match(name) or frame.file is not None:
            break
        if name.lstrip("_") in LIBC_FUNCTIONS:
            last = index + 1
    return frames[last:]


def is_emulated(facts: Facts) -> bool:
    """Return whether QEMU's user mode ended itself as the program did that it emulates."""
    info = facts.siginfo
    if info is None or info.code > 0 or facts.handled is not None:
        return False
    return any(_EMULATOR.search(f.module or "") for f in facts.crashed[:_EMULATOR_FRAMES])


def emulated_program(facts: Facts) -> str | None:
    """Return the name of the program that QEMU's user mode emulates; None if it is unknown."""
    names = [module.name for module in facts.modules if not _EMULATOR.search(module.name)]
    own = (name.rpartition("/")[2] for name in names)
    return next((name for name in own if name and not _SHARED.search(name)), None)


def is_failure(frame: Frame) -> bool:
    """Return whether a frame's function ends the process."""
    return frame.function is not None and bool(_FAILURES.match(plain_name(frame.function)))


def below_failure(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames below the deepest failure function; all frames if there is none.

    Some functions of sanitizers are also below a program's own: they start threads and pass calls
    on. They count only where nothing but helpers is above.
    """
    top = 0
    while top < len(frames) and (
        is_failure(frames[top]) or is_helper(frames[top]) or _is_ubsans(frames[top + 1 :])
    ):
        top += 1
    for index in range(len(frames) - 1, -1, -1):
        if is_failure(frames[index]) and (index < top or not _passes_on(frames[index])):
            return _below_cleanup(frames[index], frames[index + 1 :])
    return frames


def _below_cleanup(failure: Frame, frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames without the destructors that are inlined before a call of _Unwind_Resume:
    they have run, and the unwinder then found no handler.
    """
    at = 0
    if (failure.function or "").startswith("_Unwind_Resume"):
        while at < len(frames) and frames[at].inline:
            at += 1
    return frames[at:]


def _is_ubsans(callers: Sequence[Frame]) -> bool:
    """Return whether UBSan's entry is the caller; the functions that it calls have plain names."""
    return bool(callers) and (callers[0].function or "").startswith("__ubsan_handle_")


def _passes_on(frame: Frame) -> bool:
    return _PASSES_ON.match(plain_name(frame.function or "")) is not None
