"""Qualified names of inlined functions, from the strings of debug information."""

import pytest

from crashd.analyzers.demangle import Demangler
from crashd.analyzers.qualified import NAMES_MAX, candidates, names_all, with_class

DEMANGLER = Demangler()
STRINGS = b"\0".join(
    (b"", b"push", b"_ZN3app5Queue4pushEPNS_4NodeE", b"_ZN3app5QueueC4Ev", b"_ZN3app5QueueD2Ev",
     b"_ZNK3app6BufferIlE2atEi", b"_ZN1a4Pool3runEv", b"_ZN1b4Pool3runEv", b"_ZN1a4Pool4stopEv",
     b"_ZN3app4loadEv", b"5Queue4push", b"_Z4openv", b"_ZN3app4openEv", b"")
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "owner", "qualified"),
    [
        ("push", "Queue", "app::Queue::push"),
        ("Queue", "Queue", "app::Queue::Queue"),
        ("~Queue", "Queue", "app::Queue::~Queue"),
        ("operator*", "Queue", "app::Queue::operator*"),
        ("size", "Queue", "app::Queue::size"),
        ("at", "Buffer", "app::Buffer::at"),
        ("stop", "Pool", "a::Pool::stop"),
        ("run", "Pool", "Pool::run"),
        ("size", "Pool", "Pool::size"),
        ("set", "Hidden", "Hidden::set"),
    ],
)
def test_with_class_qualifies_only_what_the_names_agree_on(
    name: str, owner: str, qualified: str
) -> None:
    assert with_class(name, owner, STRINGS, DEMANGLER) == qualified


def test_candidates_are_all_functions_of_a_name() -> None:
    assert candidates("load", STRINGS, DEMANGLER) == {"app::load"}
    assert candidates("~Queue", STRINGS, DEMANGLER) == {"app::Queue::~Queue"}
    assert candidates("open", STRINGS, DEMANGLER) == {"open", "app::open"}
    assert candidates("run", STRINGS, DEMANGLER) == {"a::Pool::run", "b::Pool::run"}
    assert candidates("gone", STRINGS, DEMANGLER) == set()
    assert candidates("load", b"_ZN3app4loadEv", DEMANGLER) == set()  # cut


def test_candidates_too_many_are_none() -> None:
    many = b"".join(b"\0_ZN4n%03d3runEv" % number for number in range(NAMES_MAX + 1)) + b"\0"
    assert candidates("run", many, DEMANGLER) == set()
    assert candidates("run", many[: -len(b"_ZN4n0003runEv\0")] + b"\0", DEMANGLER)


def test_names_all_is_of_clang_alone() -> None:
    assert names_all(b"\0clang version 14.0.6\0")
    assert not names_all(b"\0clang version 14.0.6\0GNU C17 12.2.0\0")
    assert not names_all(b"\0GNU C++17\0")
