import pytest

from crashd.cli.render import display_width
from crashd.cli.show.charts import Canvas, draw_bars, draw_columns
from tests.unit.cli.rows import HOSTILE

COUNTS = [("nginx.service", 200), ("web.service", 50), ("x", 1)]


def test_draw_bars_are_in_proportion_and_never_empty() -> None:
    lines = list(draw_bars(Canvas(60, unicode=True, color=False), COUNTS, 8))
    assert lines == [
        "  nginx.service 200 " + "█" * 40,
        "  web.service    50 " + "█" * 10,
        "  x               1 ▎",
    ]


def test_draw_bars_in_ascii_has_nothing_else() -> None:
    lines = list(draw_bars(Canvas(60, unicode=False, color=False), [("ünit", 2), ("b", 1)], 8))
    assert lines[0].startswith(r"  \xfcnit 2 ####")
    assert all(line.isascii() for line in lines)


def test_draw_bars_counts_the_rest_in_a_line() -> None:
    lines = list(draw_bars(Canvas(60, unicode=True, color=False), COUNTS, 1))
    assert lines[1:] == ["  and 2 more with 51"]


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [1, 30, 80, 300])
def test_draw_bars_of_hostile_names_stay_harmless_and_in_width(width: int, unicode: bool) -> None:
    name = HOSTILE.decode("utf-8", "backslashreplace")
    counts = [(name * 20, 10**9), ("/" + name, 3), ("\u6f22" * 90, 1)]
    for line in draw_bars(Canvas(width, unicode=unicode, color=False), counts, 8):
        assert line.isprintable()
        assert display_width(line) <= max(width, 30)
        assert unicode or line.isascii()


def test_label_of_a_path_keeps_its_end() -> None:
    path = "/usr/lib/postgresql/15/bin/postgres"
    assert Canvas(80, True, False).label(path, 12) == "…/postgres"
    assert Canvas(80, False, False).label(path, 12) == "~in/postgres"
    assert Canvas(80, False, False).label("postgresql.service", 12) == "postgresql.~"


def test_draw_columns_are_in_proportion_with_an_axis() -> None:
    canvas = Canvas(14, unicode=True, color=False)
    lines = list(draw_columns(canvas, [0, 1, 4, 2], height=2, ends=("a", "b"), marks={2: "K"}))
    assert lines == [
        "  4│    ██",
        "   │  ▄▄████",
        "  0└────────",
        "        K",
        "    a      b",
    ]


@pytest.mark.parametrize("values", [[0, 0], [5], list(range(60))])
def test_draw_columns_in_ascii_has_nothing_else(values: list[int]) -> None:
    canvas = Canvas(80, unicode=False, color=False)
    lines = list(draw_columns(canvas, values, height=6, ends=("from", "to"), marks={}))
    assert len(lines) == 8
    assert all(line.isascii() and len(line) <= 80 for line in lines)


def test_colour_is_only_where_wanted() -> None:
    plain = list(draw_bars(Canvas(60, True, color=False), COUNTS, 8))
    colored = list(draw_bars(Canvas(60, True, color=True), COUNTS, 8))
    assert not any("\x1b" in line for line in plain)
    assert all("\x1b[36m" in line for line in colored)
