import pytest

from crashd.cli.show.charts import Canvas
from crashd.cli.show.stats import can_draw, render
from crashd.domain.crash.tally import plan_timeline, tally
from tests.unit.cli.rows import TIME_NS, row_of

DAY_NS = 86400 * 10**9


@pytest.mark.parametrize("width", [40, 80])
def test_render_fits_the_terminal(width: int) -> None:
    rows = [row_of(unit="a-unit-with-a-rather-long-name-of-its-own.service"), row_of(unit=None)]
    found = tally(rows, plan_timeline(TIME_NS - DAY_NS, TIME_NS + 10**9, width - 8))
    lines = list(render(found, Canvas(width, unicode=True, color=False), 8))
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()).startswith("2 crashes, 2026-11-22 ")


@pytest.mark.parametrize(
    ("environ", "drawn"),
    [
        ({}, True),
        ({"LANG": "C"}, False),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "C.UTF-8", "LANG": "C"}, True),
        ({"LANG": "en_US.UTF-8"}, True),
    ],
)
def test_can_draw_honours_an_explicit_c(environ: dict[str, str], drawn: bool) -> None:
    assert can_draw("utf-8", environ) is drawn
    assert not can_draw("iso8859-1", environ)
    assert not can_draw(None, environ)
