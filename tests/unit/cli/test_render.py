import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.cli.render import (
    _STATE_STYLES,
    HEADINGS,
    TITLE_MIN,
    Table,
    _row_age,
    _row_time,
    cut,
    cut_path,
    cut_words,
    display_width,
    fit,
    json_line,
    local_time,
    pad,
    render_json_list,
    short_age,
    stored_text,
    styled,
    what_crashed,
    wrap,
)
from crashd.domain.crash.keys import time_text
from crashd.domain.crash.model import LIST_KEYS, Capture, Core, Kind, State

from .rows import HOSTILE, NGINX, TIME_NS, row_of

NARROW = range(1, 200)
UNSAFE = set(map(chr, [*range(32), 127, *range(128, 160), 0x202E, 0x2066, 0x2028]))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def lines_of(rows: list[dict[str, Any]], width: int | None, *, color: bool = False) -> list[str]:
    return list(Table(width, color=color).lines(rows, legend=True))


def test_lines_for_a_pipe_are_the_same_however_they_are_made() -> None:
    """Plain ASCII has a quicker way than colours and other characters."""
    rows = [
        row_of(),
        row_of(state=State.EVICTED, exe=b"/" + b"long/" * 20 + b"name", title=None, pid=None),
        row_of(comm=HOSTILE, exe=b"/" + HOSTILE, title="100% of %s"),
        row_of(exe="/opt/\u65e5\u672c".encode(), title="\u65e5\u672c\u8a9e"),
    ]
    quick = list(Table(None, color=False).lines(rows, legend=True))
    slow = [
        re.sub(r"\x1b\[\d*m", "", line).rstrip()
        for line in Table(None, color=True).lines(rows, legend=True)
    ]
    assert quick == slow
    assert quick[3].endswith(" 100% of %s")


def test_lines_for_a_pipe_have_everything() -> None:
    legend, line = lines_of([row_of(title="x" * 300)], None)
    assert legend.split() == list(HEADINGS)
    assert line.startswith("2026-11-23 05:02:09 ")
    assert line.split()[2:9] == [
        NGINX.short_id,
        "1234",
        "33",
        "SIGSEGV",
        "complete",
        "296K",
        "/usr/sbin/nginx",
    ]
    assert line.endswith(" " + "x" * 300)


def test_lines_are_aligned() -> None:
    lines = lines_of([row_of(), row_of(pid=4194303, uid=0, state=State.METADATA_ONLY)], None)
    assert len(
        {line.index(word) for line, word in zip(lines[1:], ["NULL pointer"] * 2, strict=True)}
    )
    assert {line.index("/usr/sbin/nginx") for line in lines[1:]} == {lines[0].index("EXE")}
    ends = {line.index("1234") + 4 for line in lines[1:2]} | {lines[2].index("4194303") + 7}
    assert ends == {lines[0].index("PID") + 3}


def test_lines_one_long_path_does_not_push_all_titles_away() -> None:
    lines = lines_of([row_of(), row_of(exe=b"/" + b"x" * 500)], None)
    assert lines[1].index("NULL pointer") < 120
    assert "x" * 500 in lines[2]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_lines_on_a_terminal_fit_it(width: int) -> None:
    rows = [
        row_of(),
        row_of(exe=HOSTILE * 20, comm=HOSTILE, title="t" * 500, pid=4194303, uid=4294967294),
        row_of(exe="/opt/日本語/プログラム".encode(), title="日本語" * 40),
    ]
    for line in lines_of(rows, width):
        assert display_width(line) <= width


CAUSES = [
    ("SIGSEGV in nginx, ngx_http_parse(): NULL pointer write at 0x0", "NULL pointer write at 0x0"),
    ("SIGABRT in nginx, main.main(): Go panic: index out of range [5]", "Go panic: index out of"),
    ("SIGSEGV in nginx, f(): stack overflow", "stack overflow, in f()"),
]


@pytest.mark.parametrize(("title", "cause"), CAUSES)
def test_lines_on_80_columns_show_the_cause(title: str, cause: str) -> None:
    now_ns = TIME_NS + 7200 * 10**9
    row = row_of(title=title, pid=4194303, uid=4294967294)
    legend, line = Table(80, color=False, now_ns=now_ns).lines([row], legend=True)
    assert legend.split() == ["TIME", "ID", "SIGNAL", "STATE", "EXE", "TITLE"]
    assert line.startswith(f"2h ago {NGINX.short_id} SIGSEGV complete nginx ")
    assert cause in line
    assert "in nginx" not in line
    assert len(line) <= 80


def test_lines_of_panics_differ_on_80_columns() -> None:
    rows = [
        row_of(kind=Kind.KERNEL, exe=b"", comm=b"", title=f"Kernel panic - not syncing: {why}")
        for why in ("VFS: Unable to mount root fs", "Attempted to kill init!")
    ]
    lines = lines_of(rows, 80)
    assert lines[1].endswith("panic: VFS: Unable to mount root fs")
    assert lines[2].endswith("panic: Attempted to kill init!")


def test_lines_on_120_columns_show_all_columns() -> None:
    assert lines_of([row_of()], 120)[0].split() == list(HEADINGS)


def test_lines_long_path_keeps_its_end() -> None:
    line = lines_of([row_of(exe=b"/a/very/long/path/to/some/program/deep/down/redis-server")], 120)
    assert "…/redis-server  NULL pointer" in line[1]


@pytest.mark.parametrize("width", [None, 80, 200])
@pytest.mark.parametrize("color", [False, True])
def test_lines_hostile_names_cannot_reach_the_terminal(width: int | None, color: bool) -> None:
    text = HOSTILE.decode("utf-8", "replace")
    row = row_of(exe=HOSTILE, comm=HOSTILE, hostname=HOSTILE, title=text)
    row["state"] = row["signal_name"] = text
    lines = lines_of([row], width, color=color)
    assert len(lines) == 2
    for line in lines:
        bare = line.replace("\x1b[4m", "").replace("\x1b[0m", "")
        assert not UNSAFE & set(bare)


def test_lines_color_marks_what_is_not_complete() -> None:
    complete, lost = lines_of([row_of(), row_of(state=State.LOST)], None, color=True)[1:]
    assert "\x1b[" not in complete
    assert "\x1b[31mlost    \x1b[0m" in lost


def test_lines_without_legend_have_no_headings() -> None:
    assert len(list(Table(80, color=False).lines([row_of()], legend=False))) == 1


def test_lines_of_no_crash_are_the_legend() -> None:
    assert len(lines_of([], 80)) == 1


def test_line_of_follow_is_aligned_to_what_was_expected() -> None:
    table = Table(None, color=False)
    table.expect({"TIME": 19, "ID": 8, "PID": 12})
    assert table.legend().index("PID") + 3 == table.line(row_of()).index("1234") + 4


@given(
    st.fixed_dictionaries({heading: st.integers(len(heading), 60) for heading in HEADINGS}),
    st.integers(1, 300),
)
def test_fit_keeps_to_the_width_and_leaves_the_title_room(
    widths: dict[str, int], width: int
) -> None:
    room = fit(widths, width)
    least = widths["TIME"] + widths["ID"] + 2
    assert {"TIME", "ID", "TITLE"} <= set(room)
    if width >= least + TITLE_MIN:
        assert sum(room.values()) + len(room) - 1 <= width
        assert room["TITLE"] >= TITLE_MIN
    assert all(value >= 1 for value in room.values())


@given(st.text(max_size=30), st.integers(1, 40))
def test_cut_never_exceeds_the_width(text: str, width: int) -> None:
    assert display_width(cut(text, width)) <= width
    assert display_width(cut_path(text, width)) <= width
    if display_width(text) <= width:
        assert cut(text, width) == cut_path(text, width) == text


@given(st.text(max_size=60), st.integers(1, 40))
def test_cut_words_never_exceeds_the_width(text: str, width: int) -> None:
    assert display_width(cut_words(text, width)) <= width


def test_cut_words_keeps_words_whole() -> None:
    assert cut_words("one two three", 10) == "one two…"
    assert cut_words("one two: three", 9) == "one two…"
    assert cut_words("overflow, in recurse()", 14) == "overflow…"
    assert cut_words("one twothreefourfive", 15) == "one twothreefo…"  # else most were empty


def test_wrap_breaks_between_words_only() -> None:
    assert wrap("a " * 20 + "x" * 50, 40, 4) == ["a " * 19 + "a", "    " + "x" * 50]
    assert wrap("one two", None, 4) == ["one two"]
    assert wrap("one two", 10, 4) == ["one two"]


@pytest.mark.parametrize(
    ("age_seconds", "text"),
    [
        (0, "0s ago"),
        (59, "59s ago"),
        (60, "1min ago"),
        (7199, "1h ago"),
        (86400 * 3, "3d ago"),
        (86400 * 99, "99d ago"),
        (86400 * 100, "2026-11-23"),
        (-5, "2026-11-23 05:02:09"),
    ],
)
def test_short_age(age_seconds: int, text: str) -> None:
    assert short_age("2026-11-23T05:02:09.000000Z", TIME_NS + age_seconds * 10**9) == text


def test_cut_marks_what_was_cut() -> None:
    assert cut("abcdef", 4) == "abc…"
    assert cut_path("/usr/bin/x", 5) == "…/x"
    assert cut_path("/usr/bin/xxxxx", 5) == "xxxxx"
    assert cut_path("/usr/bin/background-worker", 12) == "background-…"
    assert cut_path("background-worker", 12) == "background-…"
    assert cut("日本語", 4) == "日…"


def test_pad_counts_wide_characters_twice() -> None:
    assert pad("日本", 6) == "日本  "
    assert pad("日本", 6, right=True) == "  日本"


def test_display_width_combining_marks_take_none() -> None:
    assert display_width("e\u0301") == 1


def test_local_time_is_of_the_operators_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    assert local_time("2026-11-23T05:02:09.123456Z") == "2026-11-23 00:02:09"


@pytest.mark.parametrize("text", ["\x1b[2J", None, 5, "9999-99-99T00:00:00Z"])
def test_local_time_of_nonsense_is_shown_escaped(text: object) -> None:
    assert "\x1b" not in local_time(text)


def test_stored_text_without_core_is_absent() -> None:
    assert stored_text(row_of(core=Core())) == "-"
    assert stored_text(row_of()) == "296K"


def test_what_crashed_falls_back_to_the_comm() -> None:
    assert what_crashed(row_of(exe=b"")) == "nginx"
    assert what_crashed(row_of(exe=b"", comm=b"")) == "-"


def test_what_crashed_of_a_kernel_is_its_release() -> None:
    row = row_of(kind=Kind.KERNEL, kernel={"release": "6.1.0-28-amd64"}, exe=b"")
    assert what_crashed(row) == "kernel 6.1.0-28-amd64"
    assert what_crashed({**row, "kernel": None}) == "kernel"


def test_styled_without_style_is_as_it_was() -> None:
    assert styled("x", None) == "x"
    assert styled("x", "31") == "\x1b[31mx\x1b[0m"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_render_json_list_is_one_array_with_a_crash_a_line(count: int) -> None:
    rows = [row_of(pid=number) for number in range(count)]
    text = "".join(render_json_list(rows))
    assert text.count("\n") == max(count + 1, 1) if count else text == "[]\n"
    assert [crash["pid"] for crash in json.loads(text)] == list(range(count))


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(("form", "indent"), [("short", None), ("pretty", 2)])
def test_render_json_list_in_other_forms_is_what_json_makes(
    form: str, indent: int | None, count: int
) -> None:
    rows = [row_of(pid=number, comm=b"a\nb") for number in range(count)]
    text = "".join(render_json_list(rows, form))
    separators = (",", ":") if indent is None else None
    whole = [{key: row.get(key) for key in LIST_KEYS} for row in rows]
    assert text == json.dumps(whole, indent=indent, separators=separators) + "\n"


def test_json_line_has_exactly_the_keys_in_order() -> None:
    line = json_line({**row_of(capture=Capture()), "more": 1})
    assert list(json.loads(line)) == list(LIST_KEYS)


def test_json_line_is_plain_ascii() -> None:
    line = json_line(row_of(comm=HOSTILE, exe="日本".encode(), title="\u202e\x9b"))
    assert line.isascii()
    assert line.isprintable()


def test_each_state_has_a_style() -> None:
    assert set(_STATE_STYLES) == {state.value for state in State}


@given(st.integers(0, 4_000_000_000), st.integers(-5, 200 * 86400 * 10**9))
def test_times_of_rows_and_of_records_are_shown_alike(seconds: int, age_ns: int) -> None:
    time_ns = seconds * 10**9 + 123_456_789
    now_ns = time_ns + age_ns
    row, record = {"time_ns": time_ns}, {"time": time_text(time_ns)}
    assert _row_time(row) == _row_time(record)
    assert _row_age(row, now_ns) == _row_age(record, now_ns)
