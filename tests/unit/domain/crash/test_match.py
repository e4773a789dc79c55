"""MATCH and filters: words in, what they are compared with out."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.match import (
    SHOWN,
    Alternative,
    Field,
    field_of,
    is_field_name,
    is_part_of_id,
    is_unit,
    parse_term,
)
from crashd.errors import UsageError

ID = "20261123t050209-0123abcd-42-k0000001"


@pytest.mark.parametrize(
    ("text", "alternatives"),
    [
        (ID, ((Field.ID_PREFIX, ID),)),
        ("/usr/bin/x", ((Field.EXE, "/usr/bin/x"),)),
        ("42", ((Field.PID, 42), (Field.COMM, "42"))),
        ("2026", ((Field.ID_PREFIX, "2026"), (Field.PID, 2026), (Field.COMM, "2026"))),
        ("web.service", ((Field.UNIT, "web.service"), (Field.COMM, "web.service"))),
        ("user.slice", ((Field.SLICE, "user.slice"), (Field.COMM, "user.slice"))),
        ("abc", ((Field.COMM, "abc"),)),
        ("cafe", ((Field.ID_PREFIX, "cafe"), (Field.COMM, "cafe"))),
        ("My Prog", ((Field.COMM, "My Prog"),)),
        ("PID=42", (("pid", 42),)),
        ("COREDUMP_UID=0", (("uid", 0),)),
        ("signal=SEGV", (("signal", 11),)),
        ("SIGNAL=6", (("signal", 6),)),
        ("comm=a=b", (("comm", "a=b"),)),
        ("pinned=true", (("pinned", 1),)),
        ("si_code=-6", (("si_code", -6),)),
        ("SIGSEGV", (("signal", 11), (Field.COMM, "SIGSEGV"))),
        ("ABRT", (("signal", 6), (Field.COMM, "ABRT"))),
        ("abrt", ((Field.ID_PREFIX, "abrt"), (Field.COMM, "abrt"))),
        ("_UID=33", (("uid", 33),)),
        (
            "p2-0123456789abcdef",
            (("signature", "p2-0123456789abcdef"), (Field.COMM, "p2-0123456789abcdef")),
        ),
    ],
)
def test_parse_term_tells_what_a_word_may_mean(
    text: str, alternatives: tuple[tuple[str, str | int], ...]
) -> None:
    assert parse_term(text).alternatives == tuple(Alternative(f, v) for f, v in alternatives)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nofield=1",
        "pid=x",
        "signal=SIGNOPE",
        "core=1",
        "pinned=maybe",
        "uid=",
        "pid=1e3",
        "time=5",
    ],
)
def test_parse_term_nonsense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_term(text)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("sleep", "COMM=cat", True),
        ("42", "PID=43", True),
        ("web.service", "UNIT=db.service", True),
        ("/bin/a", "EXE=/bin/b", True),
        (ID, ID[:-1] + "2", True),
        ("sleep", "web.service", False),
        ("UID=0", "GID=0", False),
    ],
)
def test_group_same_field_widens_other_fields_narrow(first: str, second: str, same: bool) -> None:
    assert (parse_term(first).group == parse_term(second).group) is same


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("PID", "pid"),
        ("COREDUMP_EXE", "exe"),
        ("_SYSTEMD_UNIT", "unit"),
        ("_SYSTEMD_USER_UNIT", "user_unit"),
        ("_HOSTNAME", "hostname"),
        ("_UID", "uid"),
        ("si_code", "si_code"),
    ],
)
def test_field_of_takes_the_names_of_the_journal(name: str, field: str) -> None:
    assert field_of(name) == field


@pytest.mark.parametrize(("name", "near"), [("sginal", "signal"), ("COREDUMP_COM", "comm")])
def test_field_of_a_wrong_name_says_which_one_may_be_meant(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown field {name}, did you mean {near}"):
        field_of(name)


def test_parse_term_boot_id_may_have_dashes() -> None:
    with_dashes = "_BOOT_ID=5F0C77AA-0000-0000-0000-000000000001"
    assert parse_term(with_dashes).alternatives == (
        Alternative("boot_id", "5f0c77aa000000000000000000000001"),
    )


@pytest.mark.parametrize(
    ("text", "field", "others"),
    [
        ("/usr/bin/py*", "exe", ()),
        ("exe=/opt/*", "exe", ()),
        ("php-fpm?", "comm", ()),
        ("web@*.service", "unit", ("comm",)),
    ],
)
def test_parse_term_wildcards_are_patterns_and_the_text_itself(
    text: str, field: str, others: tuple[str, ...]
) -> None:
    value = text.removeprefix("exe=")
    assert parse_term(text).alternatives == tuple(
        Alternative(name, value, is_glob) for name in (field, *others) for is_glob in (False, True)
    )


def test_parse_term_long_pattern_is_refused() -> None:
    assert parse_term("/" + "x" * 4000).alternatives
    with pytest.raises(UsageError, match="256"):
        parse_term("/" + "*" * 256)


@given(st.text(max_size=30))
def test_parse_term_any_text_is_a_term_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_term(text).alternatives


@given(
    st.one_of(
        st.text(max_size=6),
        st.from_regex(r"\A[A-Za-z_0-9]{0,6}=?.{0,3}\Z"),
        st.from_regex(r"\A[a-z0-9-]{0,9}\n?\Z"),
        st.from_regex(r"\A.{0,3}\.(service|scope|path|slice|servic)\n?\Z"),
    )
)
def test_words_are_what_expressions_say(text: str) -> None:
    units = r"(?s:.+)\.(service|scope|socket|mount|automount|swap|target|timer|path|device)"
    assert is_field_name(text) == bool(re.fullmatch("[A-Za-z_]+", text))
    assert is_part_of_id(text) == bool(re.fullmatch("[0-9a-z-]+", text))
    assert is_unit(text) == bool(re.fullmatch(units, text))


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("COREDUMP_ROOT=/srv", "root", "/srv"),
        ("COREDUMP_CGROUP=/system.slice/a.service", "cgroup", "/system.slice/a.service"),
        ("COREDUMP_PROC_CGROUP=/a", "cgroup", "/a"),
        ("COREDUMP_RLIMIT=18446744073709551615", "rlimit_core", "18446744073709551615"),
        ("COREDUMP_SESSION=3", "session", "3"),
        ("COREDUMP_CODE=1", "si_code", 1),
        ("COREDUMP_TRUNCATED=1", "state", "truncated"),
        ("CRASHD_ID=x", "id", "x"),
    ],
)
def test_fields_of_the_journal_are_known(text: str, field: str, value: str | int) -> None:
    assert parse_term(text).alternatives == (Alternative(field, value),)


@pytest.mark.parametrize("name", ["COREDUMP_PROC_MAPS", "COREDUMP_FILENAME", "environ"])
def test_fields_that_are_only_shown_say_so(name: str) -> None:
    with pytest.raises(UsageError, match="shown by -F"):
        parse_term(f"{name}=x")
    assert field_of(name, SHOWN)
