import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.crash.model import (
    ID_PATTERN,
    LIST_KEYS,
    SCHEMA,
    Capture,
    Core,
    Crash,
    Disposition,
    Engine,
    Identity,
    Kind,
    Mode,
    State,
    build_id_text,
    from_json,
    time_text,
    to_json,
)
from crashd.errors import FormatError

BOOT_ID = "0123456789abcdef0123456789abcdef"
ID = "20260102t030405-01234567-4242-a1b2c3d4"
CRASH = Crash(id=ID, kind=Kind.PROCESS, state=State.COMPLETE, time_ns=10**18, boot_id=BOOT_ID)

# Bytes as a hostile process would have them: not UTF-8, controls, NUL, what looks like an escape.
BYTES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"\xff\x1b[2J", b"\\xff", b"a\nb\0c", "\u202eé".encode(), b"\\udcff"]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
NUMBER = st.integers(0, 2**64 - 1)
SIZE = st.integers(0, 2**63 - 1)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


CRASHES = st.builds(
    Crash,
    id=st.just(ID),
    kind=st.sampled_from(Kind),
    state=st.sampled_from(State),
    time_ns=st.integers(0, 2**63 - 1),
    boot_id=st.just(BOOT_ID),
    hostname=BYTES,
    boottime_ns=optional(NUMBER),
    pid=optional(NUMBER),
    rlimit_core=optional(NUMBER),
    signal=optional(st.integers(0, 70)),
    si_code=optional(st.integers(-100, 200)),
    fault_address=optional(NUMBER),
    comm=BYTES,
    exe=BYTES,
    argv=st.lists(BYTES, max_size=3).map(tuple),
    cwd=BYTES,
    unit=optional(TEXT),
    capture=st.builds(
        Capture,
        mode=st.sampled_from(Mode),
        engine=st.sampled_from(Engine),
        disposition=st.sampled_from(Disposition),
        identity=st.sampled_from(Identity),
        hold_ns=optional(st.integers(0, 10**12)),
        reason=optional(TEXT),
    ),
    core=st.builds(
        Core,
        path=optional(st.sampled_from(["core.zst", "core"])),
        size_bytes=SIZE,
        stored_bytes=SIZE,
        resident_bytes=SIZE,
        expected_bytes=optional(SIZE),
        complete=st.booleans(),
    ),
    title=TEXT,
    pinned=st.booleans(),
    kernel=optional(st.dictionaries(TEXT, TEXT, max_size=2)),
    warnings=st.lists(TEXT, max_size=2).map(tuple),
    environ=optional(st.lists(BYTES, max_size=3).map(tuple)),
    maps=optional(BYTES),
    status=optional(BYTES),
    auxv=optional(BYTES),
)


def document(**changes: object) -> dict[str, Any]:
    """Build a sound document, some keys changed."""
    made: dict[str, Any] = json.loads(json.dumps(to_json(CRASH)))
    return made | changes


@settings(max_examples=150, deadline=None)
@given(CRASHES)
def test_from_json_what_to_json_made_is_the_same(crash: Crash) -> None:
    text = json.dumps(to_json(crash), allow_nan=False)
    text.encode("ascii")
    assert from_json(json.loads(text)) == crash


def test_to_json_keys_are_the_design_s() -> None:
    # count_of_signature is the index's to add.
    assert set(LIST_KEYS) - {"count_of_signature"} <= to_json(CRASH).keys()


def test_to_json_values_are_for_people() -> None:
    crash = Crash(
        id=ID,
        kind=Kind.PROCESS,
        state=State.COMPLETE,
        time_ns=1767323045_123456789,
        boot_id=BOOT_ID,
        signal=11,
        fault_address=16,
        comm=b"a\xff",
        exe=b"/bin/a",
        argv=(b"a", b"b c", b"\xfe"),
        auxv=b"plain",
        capture=Capture(hold_ns=1_500_000),
    )
    made = to_json(crash)
    assert made["time"] == "2026-01-02T03:04:05.123456Z"
    assert made["signal_name"] == "SIGSEGV"
    assert made["fault_address"] == "0x10"
    assert (made["comm"], made["comm_base64"]) == ("a\\xff", "Yf8=")
    assert made["exe"] == "/bin/a"
    assert "exe_base64" not in made
    assert made["cmdline"] == "a 'b c' '\\xfe'"
    assert made["argv"] == ["a", "b c", "\\xfe"]
    assert made["argv_base64"] == ["YQ==", "YiBj", "/g=="]
    assert made["auxv_base64"] == "cGxhaW4="
    assert made["capture"]["hold_seconds"] == 0.0015


def test_times_of_a_capture_come_back() -> None:
    capture = Capture(hold_ns=3, queued_ns=2_000_001, store_ns=5 * 10**9, spilled_bytes=1 << 40)
    assert from_json(to_json(replace(from_json(document()), capture=capture))).capture == capture


def test_from_json_smallest_document_has_defaults() -> None:
    crash = from_json(
        {
            "schema": SCHEMA,
            "id": ID,
            "kind": "process",
            "state": "complete",
            "time_ns": 5,
            "boot_id": BOOT_ID,
            "capture": {"mode": "pipe", "engine": "none", "disposition": "full"},
            "core": {"size_bytes": 0, "stored_bytes": 0, "resident_bytes": 0, "complete": False},
        }
    )
    assert crash == Crash(
        id=ID, kind=Kind.PROCESS, state=State.COMPLETE, time_ns=5, boot_id=BOOT_ID
    )


@pytest.mark.parametrize("value", [None, 1, "x", [], [{}]])
def test_from_json_no_object_is_refused(value: object) -> None:
    with pytest.raises(FormatError):
        from_json(value)


def test_from_json_newer_schema_is_refused() -> None:
    with pytest.raises(FormatError, match=f"schema {SCHEMA + 1}, newer than {SCHEMA}"):
        from_json(document(schema=SCHEMA + 1))


@pytest.mark.parametrize(
    "crash_id",
    [
        "../../x",
        ID + "\n",
        "\n" + ID,
        ID + "/..",
        ID.upper(),
        ID[:-1],
        ID + "a",
        ID.replace("a1b2", "1ab2"),
        ID.replace("4242", "²"),
        "",
        None,
        5,
        ["x"],
    ],
)
def test_from_json_bad_id_is_refused(crash_id: object) -> None:
    with pytest.raises(FormatError):
        from_json(document(id=crash_id))


@pytest.mark.parametrize(
    "path",
    [
        "../core",
        "/etc/shadow",
        "a/b",
        "core\n",
        "",
        ".",
        "..",
        ".core",
        "core\0",
        "a" * 32,
        5,
        "CORE",
    ],
)
def test_from_json_core_path_other_than_plain_name_is_refused(path: object) -> None:
    made = document()
    made["core"]["path"] = path
    with pytest.raises(FormatError):
        from_json(made)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "1"),
        ("schema", None),
        ("kind", "martian"),
        ("state", "COMPLETE"),
        ("state", None),
        ("time_ns", "x"),
        ("time_ns", None),
        ("time_ns", float("inf")),
        ("time_ns", float("nan")),
        ("time_ns", 10**30),
        ("time_ns", -(10**30)),
        ("pid", "1"),
        ("pid", 1.5),
        ("pid", True),
        ("pid", 2**64),
        ("signal", "SIGSEGV"),
        ("signal", []),
        ("rlimit_core", -(2**63) - 1),
        ("fault_address", 16),
        ("fault_address", "x"),
        ("fault_address", "-0x1"),
        ("fault_address", "0x10000000000000000"),
        ("unit", 5),
        ("unit", "\ud800"),
        ("title", ["x"]),
        ("kernel", "x"),
        ("warnings", "x"),
        ("warnings", 5),
        ("comm", 5),
        ("comm", "\ud800"),
        ("comm_base64", "*"),
        ("comm_base64", 5),
        ("argv", [5]),
        ("argv", 5),
        ("argv_base64", ["*"]),
        ("capture", None),
        ("capture", {}),
        ("core", []),
    ],
)
def test_from_json_wrong_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(FormatError):
        from_json(document(**{key: value}))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("capture", "hold_seconds", float("inf")),
        ("capture", "hold_seconds", "1"),
        ("capture", "queued_seconds", "1"),
        ("capture", "store_seconds", float("nan")),
        ("capture", "spilled_bytes", -1),
        ("capture", "mode", "x"),
        ("capture", "engine", None),
        ("capture", "disposition", "x"),
        ("capture", "identity", "x"),
        ("core", "size_bytes", "x"),
        ("core", "size_bytes", None),
        ("core", "expected_bytes", "x"),
    ],
)
def test_from_json_wrong_value_inside_is_refused(part: str, key: str, value: object) -> None:
    made = document()
    made[part][key] = value
    with pytest.raises(FormatError):
        from_json(made)


@pytest.mark.parametrize("key", ["schema", "id", "kind", "state", "time_ns", "capture", "core"])
def test_from_json_missing_key_is_refused(key: str) -> None:
    made = document()
    del made[key]
    with pytest.raises(FormatError):
        from_json(made)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(document())), JSON)
def test_from_json_any_value_is_refused_or_can_be_written_again(key: str, value: object) -> None:
    try:
        crash = from_json(document(**{key: value}))
    except FormatError:
        return
    assert from_json(to_json(crash)) == crash


@given(st.integers(0, 4 * 10**18), st.integers(-5, 2**31), st.integers(0, 2**40 - 1))
def test_build_id_text_any_values_match_the_pattern(time_ns: int, pid: int, random: int) -> None:
    text = build_id_text(time_ns, BOOT_ID, pid, random)
    assert ID_PATTERN.fullmatch(text)


def test_build_id_text_values_stand_in_order() -> None:
    assert build_id_text(1767323045 * 10**9, BOOT_ID, 4242, 0) == (
        "20260102t030405-01234567-4242-aaaaaaaa"
    )
    assert build_id_text(0, BOOT_ID, 1, 27) == "19700101t000000-01234567-1-bbaaaaaa"


def test_crash_short_id_is_the_last_group() -> None:
    assert CRASH.short_id == "a1b2c3d4"


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1767323045_123456789, "2026-01-02T03:04:05.123456Z"),
        (1767323045_000000999, "2026-01-02T03:04:05.000000Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775Z"),
    ],
)
def test_time_text_is_utc_with_microseconds(time_ns: int, text: str) -> None:
    assert time_text(time_ns) == text


def test_states_answer_what_they_mean() -> None:
    assert [state for state in State if not state.is_final] == [State.CAPTURING]
    assert {state for state in State if state.has_core} == {
        State.COMPLETE,
        State.TRUNCATED,
        State.INCOMPLETE,
    }
    assert {state for state in State if state.is_gone} == {State.EVICTED, State.MISSING}
    assert {state for state in State if state.takes_core} == {State.CAPTURING, State.LOST}
    of_processes = {state for state in State if Kind.PROCESS in state.kinds}
    assert set(State) - of_processes == {State.INCOMPLETE, State.MISSING}
    assert {state for state in State if Kind.KERNEL not in state.kinds} == {
        State.TRUNCATED,
        State.LOST,
    }
