from pathlib import Path

import pytest

from crashd import corehandler
from crashd.corehandler import SPECIFIERS
from crashd.domain.crash.corepattern import (
    PATTERN_MAX,
    build_pattern,
    handler_of,
    is_ours,
)
from crashd.errors import ConfigError

HANDLER = "/usr/libexec/crashd-core"


def test_build_pattern_installed_is_the_design_s() -> None:
    pattern = build_pattern(HANDLER)
    assert pattern == "|/usr/libexec/crashd-core %p %e %s %t %P %I %u %g %c %d %F %h"
    assert "".join(word[1:] for word in pattern.split()[1:]) == SPECIFIERS


def test_specifiers_are_those_of_the_native_handler() -> None:
    native = Path(corehandler.__file__).parent / "native/crashd-core.c"
    assert f'#define SPECIFIERS "{SPECIFIERS}"\n' in native.read_text()
    assert f'add("argc", "{len(SPECIFIERS)}");' in native.read_text()


def test_build_pattern_short_has_the_contract_only() -> None:
    assert build_pattern(HANDLER, extended=False) == "|/usr/libexec/crashd-core %p %e %s %t"


@pytest.mark.parametrize("extended", [True, False])
def test_build_pattern_length_limit_counts_bytes(extended: bool) -> None:
    rest = len(build_pattern("/", extended=extended)) - 1
    longest = "/" + "a" * (PATTERN_MAX - rest - 1)
    assert len(build_pattern(longest, extended=extended)) == PATTERN_MAX
    with pytest.raises(ConfigError) as error:
        build_pattern(longest + "bc", extended=extended)
    assert error.value.hint is not None
    assert "2 bytes shorter" in error.value.hint
    with pytest.raises(ConfigError):
        build_pattern(longest[:-1] + "é", extended=extended)


@pytest.mark.parametrize(
    "handler",
    [
        "",
        "crashd-core",
        "./crashd-core",
        "/a b/c",
        "/a\tb",
        "/a\nb",
        "/a\x0bb",
        "/a\xa0b",
        "/100%/c",
        "/a\0b",
        "/a\x1bb",
        "/a\udcffb",
    ],
)
def test_build_pattern_path_the_kernel_would_break_is_refused(handler: str) -> None:
    with pytest.raises(ConfigError):
        build_pattern(handler)


@pytest.mark.parametrize(
    ("pattern", "handler"),
    [
        ("|/usr/libexec/crashd-core %p", "/usr/libexec/crashd-core"),
        ("|  /x/y %p\n", "/x/y"),
        ("|\t/x/y", "/x/y"),
        ("|/x/y\t%p", "/x/y"),
        ("|/x/y\xa0%p", "/x/y\xa0%p"),
        ("|", None),
        ("|  \n", None),
        ("", None),
        ("core", None),
        ("core.%p", None),
        (" |/x/y", None),
        ("@/run/x.sock", None),
        ("@@/run/x.sock", None),
    ],
)
def test_handler_of_pattern_names_the_program(pattern: str, handler: str | None) -> None:
    assert handler_of(pattern) == handler


@pytest.mark.parametrize(
    ("pattern", "ours"),
    [
        (build_pattern(HANDLER), True),
        (build_pattern(HANDLER) + "\n", True),
        (build_pattern(HANDLER, extended=False), True),
        (f"| {HANDLER} %p  %e %s %t %P", True),
        (f"|{HANDLER} %p %e %s", False),
        (f"|{HANDLER} %P %e %s %t", False),
        (f"|{HANDLER} %e %p %s %t", False),
        (f"|{HANDLER}", False),
        (f"|{HANDLER}x %p %e %s %t", False),
        (f"{HANDLER} %p %e %s %t", False),
        (f"|/usr/bin/env {HANDLER} %p %e %s %t", False),
        ("|/usr/lib/systemd/systemd-coredump %P %u %g %s %t %c %h", False),
        ("core", False),
        ("", False),
    ],
)
def test_is_ours_pattern_needs_handler_and_contract(pattern: str, ours: bool) -> None:
    assert is_ours(pattern, HANDLER) is ours
