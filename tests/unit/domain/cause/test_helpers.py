"""Which frames are helpers."""

from dataclasses import replace

import pytest

from crashd.domain.cause.analysis import Frame, ModuleInfo
from crashd.domain.cause.helpers import (
    below_failure,
    below_leaf,
    below_static_libc,
    in_library_source,
    is_helper,
)
from tests.builders.facts import build_facts, build_frame


@pytest.mark.parametrize(
    ("function", "file", "is_library"),
    [
        ("main.unlock", "/usr/lib/go-1.19/src/sync/mutex.go", True),
        ("main.put", "/usr/local/go/src/internal/abi/type.go", True),
        ("main.ask", "/usr/local/go/src/vendor/golang.org/x/net/idna/idna.go", True),
        ("main.run", "/home/a/go/src/github.com/a/b/run.go", False),
        ("main.run", "/home/a/go/src/shop/run.go", False),
        ("main.run", "/srv/app/sync/run.go", False),
        ("app::run", "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/core/src/a.rs", True),
        ("app::run", "library/alloc/src/boxed.rs", True),
        ("app::run", "src/library/alloc.rs", False),
        ("run", None, False),
    ],
)
def test_in_library_source(function: str, file: str | None, *, is_library: bool) -> None:
    frame = build_frame(function, file=file, line=3)
    assert in_library_source(frame) == is_library


def test_is_helper_of_go_knows_the_packages_that_go_brings_along() -> None:
    file = "/usr/local/go/src/vendor/golang.org/x/net/idna/idna.go"
    assert is_helper(build_frame("golang.org/x/net/idna.ToASCII", file=file))
    assert not is_helper(build_frame("main.ask", file=file))


def test_below_leaf_drops_what_an_allocator_calls() -> None:
    def names(*functions: str) -> list[str | None]:
        return [f.function for f in below_leaf(build_facts(*functions).crashed)]

    assert names("get_meta", "__libc_free", "run", "main") == ["__libc_free", "run", "main"]
    assert names("check", "free", "operator delete(void*)", "run") == [
        "operator delete(void*)",
        "run",
    ]
    assert names("run", "main") == ["run", "main"]
    assert names() == []
    handler = ("on_alarm", "__restore_rt", "malloc", "run")
    assert names(*handler) == list(handler)
    new_handler = ("gives_up", "operator new(unsigned long)", "run")
    assert names(*new_handler) == list(new_handler)


def test_below_failure_of_unwinding_leaves_out_the_destructors_that_ran() -> None:
    """A function without a handler cleans up, and the next one's noexcept ends the process."""
    frames = (
        *build_facts("abort", "std::terminate()", "__gxx_personality_v0", "_Unwind_Resume").crashed,
        *(build_frame("app::Store::~Store", inline=True), build_frame("load()")),
        build_frame("start()"),
    )
    assert [f.function for f in below_failure(frames)] == ["load()", "start()"]
    other = below_failure((*frames[:3], *frames[4:]))
    assert other[0].function == "app::Store::~Store"


def test_below_static_libc_drops_what_a_function_of_libc_calls() -> None:
    """But not in a program that has a libc beside it, and not a function that has a line."""

    def names(*functions: str | Frame, libc: str = "") -> list[str | None]:
        module = ModuleInfo(libc or "/bin/prog", 0, 1, None, False, None, False, True)
        facts = replace(build_facts(*functions), modules=(module,))
        return [f.function for f in below_static_libc(facts, facts.crashed)]

    assert names("__intscan", "strtox", "strtol", "parse", "main") == ["parse", "main"]
    assert names("__pthread_mutex_lock", "work") == ["work"]
    assert names("compare", "qsort", "sorts") == ["compare", "qsort", "sorts"]
    assert names("strtol", "parse", libc="/lib/libc.so.6") == ["strtol", "parse"]
    assert names("strtol", "parse", libc="/lib/ld-musl-x86_64.so.1") == ["strtol", "parse"]
    own = build_frame("index", file="a.c", line=3)
    assert names(own, "parse") == ["index", "parse"]
    assert names("handler", "__restore_rt", "read", "main")[0] == "handler"
